"""The settings of a study: what the command line gave, checked, with every default decided."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from study.space_file import Space
from study.trial_command import TrialCommand
from trainer.config import (
    LOSSES,
    LOSSES_OF_CLASSES,
    LOSSES_OF_FOREGROUND,
    OPTIMIZERS,
    SCHEDULES_OF_STUDIES,
    known_name,
    read_configuration,
)
from trainer.data.labels import MaskClass
from trainer.errors import InputError, nearest

PROGRAM_FOLDER = Path(__file__).resolve().parent.parent
CHECKPOINT_SUFFIXES = (".pt", ".safetensors", ".h5", ".hdf5")
CHOICES = {
    "launcher": ("auto", "docker", "process"),
    "select-on": ("validation", "test"),
    "metric": ("accuracy", "foreground_dice", "iou"),
    "augment": ("light", "none"),
}
CHANGEABLE = (
    "data",
    "layers",
    "labels",
    "split",
    "num-trials",
    "launcher",
    "docker-image",
    "gpu",
    "threads",
    "timeout",
    "keep-checkpoints",
)
USUAL_LOSSES, USUAL_LOSSES_OF_CLASSES = ("bce", "dice"), ("nll", "dice")
Kind = Literal["images", "volumes", "slices"]
NOUNS: dict[Kind, str] = {"images": "images", "volumes": "cases", "slices": "slices"}
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Settings:
    """All that a study is asked to do. Paths are absolute; None means: not limited, not given."""

    study_name: str
    data: Path
    layers: Path
    image_size: int
    num_trials: int
    num_epochs: int
    batch_size: int
    labels: Path | None
    classes: tuple[MaskClass, ...]
    optimizers: tuple[str, ...]
    losses: tuple[str, ...]
    lr_min: float
    lr_max: float
    lr_schedules: tuple[str, ...]
    lr_scheduler_gamma: float | None
    seed: int
    select_on: str
    metric: str
    prune: bool
    augment: str
    weights: str
    group_by: str | None
    split: Path | None
    launcher: str
    docker_image: str
    docker_image_given: bool
    gpu: bool
    gpu_asked: bool | None
    threads: int | None
    timeout_seconds: float | None
    keep_checkpoints: int
    storage: str
    trial_command: TrialCommand | None = None
    config: Path | None = None
    base: dict[str, Any] | None = None
    """What is not searched: the section neural_network of --config, of the configuration beside
    prepared volumes, or of configs/brain_slices.json."""
    space_file: Path | None = None
    space: Space | None = None
    network: dict[str, Any] | None = None
    """The network file's content, where a search space names keys of it."""
    kind: Kind = "images"
    """Of the data."""
    batch_size_given: bool = True

    @property
    def noun(self) -> str:
        """What one of the data is called, in the plural."""
        return NOUNS[self.kind]

    def options(self) -> dict[str, Any]:
        """Every option of the command line with its value, by name; a resume begins from them."""
        return {
            "data": str(self.data),
            "layers": str(self.layers),
            "image-size": self.image_size,
            "num-trials": self.num_trials,
            "num-epochs": self.num_epochs,
            "labels": str(self.labels) if self.labels else None,
            "batch-size": self.batch_size if self.batch_size_given or self.base is None else None,
            "optimizers": ",".join(self.optimizers),
            "loss": ",".join(self.losses),
            "lr-range-min": self.lr_min,
            "lr-range-max": self.lr_max,
            "lr-scheduler": bool(self.lr_schedules),
            "lr-scheduler-kind": ",".join(self.lr_schedules) or None,
            "lr-scheduler-gamma": self.lr_scheduler_gamma,
            "seed": self.seed,
            "select-on": self.select_on,
            "metric": self.metric,
            "prune": self.prune,
            "augment": self.augment,
            "weights": self.weights,
            "group-by": self.group_by,
            "split": str(self.split) if self.split else None,
            "launcher": self.launcher,
            "docker-image": self.docker_image if self.docker_image_given else None,
            "gpu": self.gpu_asked,
            "threads": self.threads,
            "timeout": f"{self.timeout_seconds:g}s" if self.timeout_seconds else None,
            "keep-checkpoints": self.keep_checkpoints,
            "trial-command": str(self.trial_command) if self.trial_command else None,
            "config": str(self.config) if self.config else None,
            "space": str(self.space_file) if self.space_file else None,
        }

    def fixed(self) -> dict[str, Any]:
        """Those that must stay the same when a study is resumed.

        Data and network are compared by their content, and a split is drawn once.
        """
        fixed = {key: value for key, value in self.options().items() if key not in CHANGEABLE}
        named = [f"{c.name} {', '.join(map(str, c.values or c.colours))}" for c in self.classes]
        return {
            **fixed,
            "labels": "; ".join(named) or None,
            "config": json.dumps(self.base, sort_keys=True) if self.base is not None else None,
            "space": self.space.model_dump_json() if self.space else None,
        }


def new_name() -> str:
    """The name of a study that was given none."""
    return datetime.now().strftime("study-%Y%m%d-%H%M%S")


def check_name(name: str) -> str:
    """A study's name is a plain folder name."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_. -]*", name) or len(name) > 100:
        accepted = "letters, digits, '-', '_', '.', no slash"
        raise InputError("--study-name", f"'{name}' is not a plain folder name", accepted)
    return name


def check_choice(option: str, value: str) -> str:
    """One of the values of an option, in any case."""
    accepted = CHOICES[option]
    if value.lower() in accepted:
        return value.lower()
    hint = nearest(value, accepted)
    raise InputError(f"--{option}", f"unknown value '{value}'{hint}", ", ".join(accepted))


def check_names(option: str, kind: str, text: str) -> tuple[str, ...]:
    """A comma list of names of the configuration language, each once."""
    built = OPTIMIZERS if kind == "optimizer" else LOSSES
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise InputError(f"--{option}", "no name is given", ", ".join(built))
    try:
        return tuple(dict.fromkeys(known_name(kind, name, built) for name in names))
    except InputError as error:
        raise InputError(f"--{option}", error.found, error.accepted) from None


def check_losses(
    text: str | None, classes: Sequence[MaskClass], any_fits: bool = False
) -> tuple[str, ...]:
    """The losses that trials choose from: the usual two, or those of `text` that fit. With a base
    configuration the data are not known yet: `any_fits`, and the trainer checks."""
    fitting = LOSSES_OF_CLASSES if len(classes) > 2 else LOSSES_OF_FOREGROUND
    if text is None:
        return USUAL_LOSSES_OF_CLASSES if len(classes) > 2 else USUAL_LOSSES
    names = check_names("loss", "loss", text)
    for name in names:
        if name not in fitting and not any_fits:
            what = f"{len(classes)} classes" if len(classes) > 2 else "one foreground class"
            raise InputError("--loss", f"{name} does not fit {what}", ", ".join(fitting))
    return names


def read_base(path: Path) -> dict[str, Any]:
    """The section neural_network of a configuration file; raises InputError."""
    content = read_configuration(path)
    base = content.get("neural_network") if isinstance(content, dict) else None
    if not isinstance(base, dict):
        raise InputError(str(path), "no object 'neural_network'", '{"neural_network": {…}}')
    for section in ("data", "optimizer", "loss"):
        if not isinstance(base.get(section, {}), dict):
            raise InputError(f"{path}, {section}", "is no section", "an object")
    return base


def check_schedules(text: str | None, on: bool) -> tuple[str, ...]:
    """The learning rate schedules that trials choose from; none for a constant rate.

    Kinds with a plus between them are multiplied, like warmup+exponential.
    """
    if text is None:
        return ("exponential",) if on else ()
    kinds = []
    for chain in text.split(","):
        names = [name.strip() for name in chain.split("+")]
        if [name.lower() for name in names] == ["none"]:
            kinds.append("none")
            continue
        try:
            known = [known_name("lr_scheduler", name, SCHEDULES_OF_STUDIES) for name in names]
            kinds.append("+".join(known))
        except InputError as error:
            accepted = f"{error.accepted}, none; several with a plus, like warmup+exponential"
            raise InputError("--lr-scheduler-kind", error.found, accepted) from None
    return tuple(dict.fromkeys(kinds))


def check_positive(option: str, value: int, least: int = 1) -> int:
    """A whole number of at least `least`."""
    if value < least:
        raise InputError(f"--{option}", f"{value} is too few", f"{least} or more")
    return value


def check_rates(low: float, high: float) -> None:
    """A range of learning rates."""
    accepted = "0 < --lr-range-min < --lr-range-max"
    for option, rate in (("--lr-range-min", low), ("--lr-range-max", high)):
        if not 0 < rate < float("inf"):
            raise InputError(option, f"{rate:g} is not a positive rate", accepted)
    if low >= high:
        found = f"the range from {low:g} to {high:g} is empty"
        raise InputError("--lr-range-min, --lr-range-max", found, accepted)


def seconds(option: str, text: str) -> float:
    """A duration like 90s, 30m, 4h, 2d (a bare number: seconds)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text.strip().lower())
    if not match or float(match[1]) <= 0:
        raise InputError(f"--{option}", f"'{text}' is not a duration", "like 90s, 30m, 4h, 2d")
    return float(match[1]) * UNITS[match[2] or "s"]


def find_layers(text: str, beside: Path | None = None) -> Path:
    """A layers file: as given from here, else by its name in the folder `beside` (which may have
    moved), else beside the program."""
    here = Path(text)
    for path in (here, *([beside / here.name] if beside else []), PROGRAM_FOLDER / text):
        if path.is_file():
            return path.resolve()
    names = sorted(p.name for p in (PROGRAM_FOLDER / "layers").glob("*.json"))
    fix = f"give one of ./layers/: {', '.join(names)}"
    raise InputError("--layers", f"there is no file '{text}'", "a network file (JSON)", fix)


def check_weights(value: str, transfer_learning: str) -> str:
    """auto, imagenet, none, or the absolute path of a file to start from."""
    if transfer_learning and value.lower() not in ("auto", "none"):
        raise InputError("--transfer-learning", "and --weights both name weights", "one of them")
    given = transfer_learning or value
    if not transfer_learning and given.lower() in ("auto", "imagenet", "none"):
        return given.lower()
    option = "--transfer-learning" if transfer_learning else "--weights"
    path = Path(given)
    if not path.is_file():
        hint = nearest(given, ("auto", "imagenet", "none")) if not transfer_learning else ""
        accepted = f"a file ({', '.join(CHECKPOINT_SUFFIXES)})" + (
            "" if transfer_learning else ", auto, imagenet, none"
        )
        raise InputError(option, f"there is no file '{given}'{hint}", accepted)
    if path.suffix.lower() not in CHECKPOINT_SUFFIXES:
        raise InputError(option, f"'{given}' is not a checkpoint", ", ".join(CHECKPOINT_SUFFIXES))
    return str(path.resolve())


def not_built(options: Sequence[tuple[str, bool, str]]) -> None:
    """Raises for the first option that asks for something that is not built yet."""
    for option, asked, instead in options:
        if asked:
            raise InputError(option, "is not built yet", instead)
