"""From the options of the command line to the settings of a study."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from study import settings as check
from study import slices
from study.data_kinds import NO_MEANING, kind_of
from study.lock import LOCK_FILE
from study.settings import Kind, Settings
from study.slots import apple_gpu, gpus
from study.space_file import read_space
from study.trial_command import parse_trial_command
from study.volumes import BASE_FILE
from trainer.config import read_json
from trainer.config.override import value_at
from trainer.data.labels import read_labels
from trainer.errors import InputError

NOT_GIVEN = ("", "none")
MAY_BE_LEFT_OUT = ("docker-image", "batch-size")
"""Options that a record names only where they were typed: then they say another thing."""

OTHER_LOSSES: dict[Kind, str] = {"images": "", "volumes": ",dice_ce,dice", "slices": ",dice,bce"}
"""That are searched beside the base's own."""


@dataclass
class Given:
    """The options' values by parameter name, the names of those that were typed, and on resume of
    those that the study had."""

    options: dict[str, Any]
    given: set[str]
    recorded: set[str] = field(default_factory=set)

    @property
    def settled(self) -> set[str]:
        """What no base configuration decides any more."""
        return self.given | self.recorded


def last_study(here: Path, asks: str = "--resume") -> str:
    """The name of the study whose driver started last here, for the option that asks."""
    locks = list((here / "runs").glob(f"*/{LOCK_FILE}"))
    if not locks:
        raise InputError(asks, "no study was run in this folder", "--study-name of a study")
    return max(locks, key=lambda path: path.stat().st_mtime).parent.name


def fill_from_record(options: Given, recorded: dict[str, Any]) -> None:
    """On resume, an option that was not typed has the value that the study had."""
    for name, value in recorded.items():
        if name not in options.given and not (name in MAY_BE_LEFT_OUT and value is None):
            options.options[name.replace("-", "_")] = value
            options.recorded.add(name)
            options.given |= {name} if name in MAY_BE_LEFT_OUT else set()


def settings_from(options: Given, here: Path) -> Settings:
    """Checked settings with every default decided; raises InputError."""
    o = options.options
    check.not_built(
        [
            (
                "--singularity-image",
                str(o["singularity_image"]).lower() not in NOT_GIVEN,
                "--docker-image, or --launcher process",
            ),
            ("--num_procs above 1", o["num_procs"] > 1, "--num_procs 1"),
        ]
    )
    for option, parameter in (
        ("num-trials", "num_trials"),
        ("num-epochs", "num_epochs"),
        ("num_procs", "num_procs"),
        ("batch-size", "batch_size"),
    ):
        check.check_positive(option, o[parameter])
    for option in ("threads", "image_size"):
        if o[option] is not None:
            check.check_positive(option.replace("_", "-"), o[option])
    check.check_positive("seed", o["seed"], least=0)
    check.check_positive("keep-checkpoints", o["keep_checkpoints"])
    check.check_rates(o["lr_range_min"], o["lr_range_max"])
    gamma = o["lr_scheduler_gamma"]
    if gamma is not None and not 0 < gamma <= 1:
        found = f"{gamma:g} is not a factor"
        raise InputError("--lr-scheduler-gamma", found, "above 0, at most 1")
    name = check.new_name() if o["study_name"] is None else check.check_name(o["study_name"])
    data = Path(os.path.abspath(here / o["data"]))
    kind = kind_of(data)
    if o["trial_command"] is not None and kind != "images":
        found = f"is for images, and {data} holds prepared {kind}"
        raise InputError("--trial-command", found, "a folder of images and masks")
    for option, why in NO_MEANING[kind].items():
        value = o[option.replace("-", "_")]
        if option in options.given and value not in (None, "none"):
            raise InputError(f"--{option}", why, fix="leave it out")
    config = Path(os.path.abspath(here / o["config"])) if o["config"] else None
    base_file = config or {"volumes": data / BASE_FILE, "slices": slices.BASE}.get(kind)
    if kind == "volumes" and base_file and not config and not base_file.is_file():
        found = f"has no {BASE_FILE}"
        raise InputError(str(data), found, "a folder of trainer.prepare", "or name a --config")
    base = check.read_base(base_file) if base_file else None
    if kind == "slices" and not config:
        base = slices.base_of(data)
    if base is not None:
        _fill_from_base(options, base, kind)
    space_file = Path(os.path.abspath(here / o["space"])) if o["space"] else None
    space = read_space(space_file) if space_file else None
    if space and space.grid and "num-trials" not in options.settled:
        o["num_trials"] = len(space.points())
    if space and space.grid and o["num_trials"] > len(space.points()):
        found = f"{o['num_trials']} trials of a grid of {len(space.points())}"
        raise InputError("--num-trials", found, "as many as the grid has points, or fewer")
    optimizers = check.check_names("optimizers", "optimizer", o["optimizers"])
    labels = Path(os.path.abspath(here / o["labels"])) if o["labels"] else None
    classes = tuple(read_labels(labels)) if labels else ()
    losses = check.check_losses(o["loss"], classes, any_fits=base is not None)
    chosen = {
        key: check.check_choice(option, o[key])
        for key, option in (
            ("launcher", "launcher"),
            ("select_on", "select-on"),
            ("metric", "metric"),
            ("augment", "augment"),
        )
    }
    gpu = find_gpu(o["gpu"])
    big = gpu and not apple_gpu()
    layers = check.find_layers(
        o["layers"] or ("./layers/resunet.json" if big else "./layers/unet_small.json"),
        base_file.parent if base_file else None,
    )
    split = Path(o["split"]).absolute() if o["split"] else None
    return Settings(
        study_name=name,
        data=data,
        layers=layers,
        image_size=o["image_size"] or (256 if big else 128),
        num_trials=o["num_trials"],
        num_epochs=o["num_epochs"],
        batch_size=o["batch_size"],
        labels=labels,
        classes=classes,
        optimizers=optimizers,
        losses=losses,
        lr_min=o["lr_range_min"],
        lr_max=o["lr_range_max"],
        lr_schedules=check.check_schedules(o["lr_scheduler_kind"], o["lr_scheduler"]),
        lr_scheduler_gamma=gamma,
        seed=o["seed"],
        select_on=chosen["select_on"],
        metric=chosen["metric"],
        prune=o["prune"],
        augment=chosen["augment"],
        weights=check.check_weights(str(o["weights"]), o["transfer_learning"]),
        group_by=o["group_by"],
        split=split,
        launcher=chosen["launcher"],
        docker_image=o["docker_image"],
        docker_image_given="docker-image" in options.given,
        gpu=gpu,
        gpu_asked=o["gpu"],
        threads=o["threads"],
        timeout_seconds=check.seconds("timeout", o["timeout"]) if o["timeout"] else None,
        keep_checkpoints=o["keep_checkpoints"],
        storage=o["storage"],
        trial_command=parse_trial_command(o["trial_command"], here)
        if o["trial_command"] is not None
        else None,
        config=config,
        base=base,
        space_file=space_file,
        space=space,
        network=read_json(layers, "layers file") if space else None,
        kind=kind,
        batch_size_given="batch-size" in options.given,
    )


def _fill_from_base(options: Given, base: dict[str, Any], kind: Kind) -> None:
    """Options that nobody decided follow the base configuration, where it says something.

    Of volumes and slices, the base's own optimizer and loss are the first of those that are
    searched, and its rate lies in the range.
    """
    o, settled = options.options, options.settled
    optimizer, rate = value_at(base, "optimizer.type"), value_at(base, "optimizer.learning_rate")
    loss, epochs = value_at(base, "loss.function"), base.get("num_epochs")
    if "seed" not in settled and isinstance(seed := base.get("seed"), int) and seed >= 0:
        o["seed"] = seed
    if "num-epochs" not in settled and isinstance(epochs, int):
        o["num_epochs"] = epochs
    if "layers" not in settled and isinstance(base.get("layers"), str):
        o["layers"] = base["layers"]
    if "optimizers" not in settled and isinstance(optimizer, str):
        o["optimizers"] = f"{optimizer},{o['optimizers']}"
    if "loss" not in settled and isinstance(loss, str):
        o["loss"] = loss + OTHER_LOSSES[kind]
    if isinstance(rate, int | float) and rate > 0:
        if "lr-range-min" not in settled:
            o["lr_range_min"] = min(o["lr_range_min"], rate)
        if "lr-range-max" not in settled:
            o["lr_range_max"] = max(o["lr_range_max"], rate)
    if "metric" not in settled and (kind == "volumes" or value_at(base, "evaluation.metric")):
        o["metric"] = value_at(base, "evaluation.metric") or "foreground_dice"
    size = next(
        (one["resize"][0] for one in value_at(base, "data.transforms") or [] if "resize" in one),
        None,
    )
    if "image-size" not in settled and isinstance(size, int):
        o["image_size"] = size


def find_gpu(asked: bool | None) -> bool:
    """Whether a GPU is used; raises InputError where one was asked for and none is there."""
    if asked is False:
        return False
    found = gpus()
    if asked and not found:
        raise InputError(
            "--gpu",
            "no GPU was found (nvidia-smi lists none)",
            "a machine with an NVIDIA GPU and its driver, or a Mac with its own",
            "leave --gpu out, or give --no-gpu to train on the CPU",
        )
    return bool(found)


def run_command(options: Given, here: Path) -> int:
    """Runs the study that the options describe; the exit code."""
    from rich.console import Console

    from rml_optuna import run_study
    from study.storage import Storage

    resume = bool(options.options["resume"])
    if resume:
        name = options.options["study_name"] or last_study(here)
        options.options["study_name"] = check.check_name(name)
        storage = Storage(options.options["storage"])
        try:
            storage.check_name(name, True, here / "runs" / name)
            fill_from_record(options, storage.recorded(name))
        finally:
            storage.close()
    return run_study(settings_from(options, here), resume=resume, here=here, console=Console())


def plan_command(options: Given, here: Path) -> int:
    """Tells what the study that the options describe would take; the exit code."""
    from rich.console import Console

    from study.commands.plan import plan_study

    if options.options["resume"]:
        raise InputError("--resume", "a plan is of a new study", "plan without --resume")
    return plan_study(settings_from(options, here), here=here, console=Console())
