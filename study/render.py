"""The configuration that one point of the search space becomes, and that of the best model."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

from study.data_kinds import AnyDataset
from study.settings import Settings
from trainer.config.override import assign

OUTPUTS = ("mlperf_log", "tensorboard")
"""Keys of a configuration that name what a run writes, beside those that a study decides."""

NETWORK = "layers."
"""Keys of a search space that begin so are of the network file."""

HESSIAN_ITERATIONS = 10
"""In each batch; the language's default of 2000 is for a batch that is all the data."""


def schedule_sections(kinds: str, settings: Settings) -> list[dict[str, Any]]:
    """What `lr_scheduler` says for kinds like warmup+step: with epochs that suit the trial's.

    A step changes the rate twice, at a third and two thirds; a multistep at a half and three
    quarters; a warm-up takes a tenth.
    """
    epochs, gamma = settings.num_epochs, settings.lr_scheduler_gamma
    told: dict[str, dict[str, Any]] = {
        "exponential": {"gamma": 0.95 if gamma is None else gamma},
        "step": {"gamma": 0.1 if gamma is None else gamma, "step_size": max(1, -(-epochs // 3))},
        "multistep": {
            "gamma": 0.1 if gamma is None else gamma,
            "milestones": sorted({max(1, epochs // 2), max(1, epochs * 3 // 4)}),
        },
        "warmup": {"num_epochs": max(1, epochs // 10), "start_factor": 0.1},
        "polynomial": {"power": 0.9},
        "cosine": {},
    }
    names = {"multistep": "MultiStep"}
    return [
        {"type": names.get(kind, kind.capitalize()), **told[kind], "verbose": True}
        for kind in kinds.split("+")
        if kind != "none"
    ]


def loss_section(function: str, settings: Settings) -> dict[str, Any]:
    """The loss, and what the network ends in: sigmoid for foreground alone, else softmax.

    With a base the network says it by itself.
    """
    if settings.base is not None:
        return {"function": function}
    if len(settings.classes) <= 2:
        return {"function": function, "source": "sigmoid"}
    return {"function": function, "source": "log_softmax" if function == "nll" else "softmax"}


def render(
    params: dict[str, Any],
    settings: Settings,
    dataset: AnyDataset,
    *,
    layers: str,
    split: Path | None,
    load: str | None,
    foreign: bool,
) -> dict[str, Any]:
    """The configuration of one trial, in the published language: the base where there is one
    (--config, or that of prepared volumes), over it what the study decides, over that the point.

    `split` None (a foreign image) means that the folders say all: trained on one, chosen on the
    other. Inputs are written as their real absolute paths.
    """
    base = deepcopy(settings.base or {})
    for key in ("outfile", "checkpoints", "layers", "seed"):
        base.pop(key, None)
    for key in OUTPUTS:  # into the run folder, each trial's own
        if base.get(key):
            base[key] = Path(str(base[key])).name
    own = base.pop("data", {})
    data = {**dataset.trial_data(settings, split, foreign), **_without_paths(own)}
    if not foreign and not dataset.splits:
        base["seed"] = settings.seed  # elsewhere the split has it
    if settings.batch_size_given or "batch_size" not in data:
        data["batch_size"] = settings.batch_size
    checkpoints: dict[str, Any] = {"save": "checkpoints/", "interval": 1} if foreign else {}
    if load:
        checkpoints["load"] = load
    neural = {
        "outfile": "out.txt",
        "num_epochs": settings.num_epochs,
        "layers": layers,
        **({"checkpoints": checkpoints} if checkpoints else {}),
        "data": data,
        "optimizer": base.pop("optimizer", {}),
        "loss": base.pop("loss", {}),
        **{key: value for key, value in base.items() if key != "num_epochs"},
    }
    if settings.base is not None:  # best.pt is the best by what the study chooses by
        neural["evaluation"] = {**(neural.get("evaluation") or {}), "metric": settings.metric}
    if settings.space is None:
        _with_point(neural, params, settings)
    else:
        for key, value in params.items():
            if not key.startswith(NETWORK):
                assign(neural, key, settings.space.meant(key, value))
    return {"neural_network": neural}


def network_of(params: dict[str, Any], settings: Settings, network: Any) -> Any:
    """The network file's content with what the point says of it, in keys like layers.depth."""
    changes = {key: value for key, value in params.items() if key.startswith(NETWORK)}
    if settings.space is None or not changes:
        return network
    changed = {"layers": deepcopy(network)}
    for key, value in changes.items():
        assign(changed, key, settings.space.meant(key, value))
    return changed["layers"]


def _with_point(neural: dict[str, Any], params: dict[str, Any], settings: Settings) -> None:
    """What the command line's own space decides: optimizer, rate, loss, schedule."""
    optimizer = neural["optimizer"]
    optimizer |= {"type": params["optimizer"], "learning_rate": params["learning_rate"]}
    if params["optimizer"] == "hessian":
        optimizer["max_iterations"] = HESSIAN_ITERATIONS
    kinds = params.get("lr_scheduler") or (settings.lr_schedules or ("none",))[0]
    if sections := schedule_sections(kinds, settings):
        optimizer["lr_scheduler"] = sections if len(sections) > 1 else sections[0]
    elif settings.lr_schedules:  # none, where a base may have one
        optimizer.pop("lr_scheduler", None)
    neural["loss"] |= loss_section(params["loss"], settings)


def _without_paths(data: dict[str, Any]) -> dict[str, Any]:
    """A base's data without what the study says: where it lies, how it is split."""
    ours = ("type", "input_type", "target_type", "split", "hdf5_outfile")
    return {key: v for key, v in data.items() if not key.endswith("_path") and key not in ours}


def render_test(
    settings: Settings,
    dataset: AnyDataset,
    loss: str,
    *,
    load: str,
    split: str | None,
    output: str | None,
    near: Callable[[Path], str] = str,
    layers: str | None = None,
) -> dict[str, Any]:
    """The configuration that evaluates and predicts the test images with a checkpoint.

    `near` writes the real absolute path of an input in another way; without targets the test images
    are predicted only. With `layers` (a foreign image) the network and its size are written out.
    """
    return {
        "neural_network": {
            **({"layers": layers} if layers else {}),
            "checkpoints": {"load": load},
            "data": dataset.test_data(settings, near, split, output, sized=layers is not None),
            "loss": loss_section(loss, settings),
        }
    }
