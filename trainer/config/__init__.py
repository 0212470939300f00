"""The configuration language: one object `neural_network`, read and checked before any work.

A file of it is JSON, or YAML where its name ends in .yaml or .yml.

Every key stands in this package beside its default and its meaning. A key that is known but that a
run does not use passes; an unknown key is an error that names the nearest known one. Paths are
resolved against the working directory. Torch-free: the driver renders what the trainer reads.

    config = load_config("config.json")
    config.optimizer.learning_rate
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from trainer.config.data import COLOUR_CONVERSIONS, Data, RandomPatches, Slicer, Transform
from trainer.config.learning import (
    LOSS_FIELDS,
    LOSSES,
    LOSSES_OF_CLASSES,
    LOSSES_OF_FOREGROUND,
    ONE,
    OPTIMIZER_FIELDS,
    OPTIMIZERS,
    OVERLAP_LOSSES,
    SCHEDULE_FIELDS,
    SCHEDULES,
    SCHEDULES_OF_STUDIES,
    SEVERAL,
    LearningRateSchedule,
    Loss,
    Optimizer,
)
from trainer.config.override import assign, parsed
from trainer.config.reading import read_configuration, read_json
from trainer.config.section import Section, known_name
from trainer.config.volumes import Evaluation, Patches, Slices, Window
from trainer.errors import InputError, joined, nearest

__all__ = [
    "COLOUR_CONVERSIONS",
    "LOSSES",
    "LOSSES_OF_CLASSES",
    "LOSSES_OF_FOREGROUND",
    "LOSS_FIELDS",
    "OPTIMIZERS",
    "OPTIMIZER_FIELDS",
    "OVERLAP_LOSSES",
    "SCHEDULES",
    "SCHEDULES_OF_STUDIES",
    "SCHEDULE_FIELDS",
    "Checkpoints",
    "Config",
    "Data",
    "Evaluation",
    "LearningRateSchedule",
    "Loss",
    "Optimizer",
    "Patches",
    "Precision",
    "RandomPatches",
    "Section",
    "Slicer",
    "Slices",
    "Submission",
    "Transform",
    "Window",
    "known_name",
    "load_config",
    "parse_config",
    "read_configuration",
    "read_json",
]

Precision = Literal["auto", "float32", "bfloat16", "float16"]


class Checkpoints(Section):
    """What is written while training, and what training or prediction starts from."""

    save: str | None = Field(
        None, description="Folder for model_checkpoint_<epoch>.pt, best.pt and last.pt."
    )
    interval: int = Field(1, ge=1, description="Epochs between two model_checkpoint files.")
    load: str | None = Field(
        None, description="Weights to start from (.pt, .safetensors, .h5 of Keras); by name."
    )


class Submission(Section):
    """What mlperf_log says of who ran it; MLPerf's words."""

    benchmark: str = Field("unet3d", min_length=1, description="Name of the benchmark.")
    org: str = Field("unnamed", min_length=1, description="Who submits.")
    platform: str = Field("unnamed", min_length=1, description="Name of the machine.")
    division: Literal["closed", "open"] = Field("closed", description="Of the rules.")
    status: Literal["onprem", "cloud", "preview", "research"] = Field(
        "onprem", description="Kind of machine, or of submission."
    )
    cache_cleared: bool = Field(
        False, description="Whoever starts the run has cleared the system's caches before."
    )


class Config(Section):
    """Everything that one run of the trainer does."""

    outfile: str | None = Field(
        None, description="Text logs <stem>_train<ext> and <stem>_test<ext>; left out, none."
    )
    num_epochs: int = Field(1, ge=1, description="Epochs of this run.")
    layers: str | list[dict[str, Any]] | None = Field(
        None,
        description="Network file, ours or a Keras model as JSON, or its layers as a list; without "
        "training the checkpoint knows it.",
    )
    debug: bool = Field(False, description="Accepted; unused.")
    debug_interval: int | None = Field(None, description="Accepted; unused.")
    seed: int | None = Field(
        None,
        ge=-1,
        lt=2**63,
        description="Weights, order, augmentation; else the split's seed, else 0. -1: drawn once, "
        "and told. Ours.",
    )
    deterministic: bool = Field(False, description="Repeatable on a GPU too, slower. Ours.")
    checkpoints: Checkpoints = Field(Checkpoints(), description="Weights in and out.")
    data: Data = Field(description="Images and masks.")
    evaluation: Evaluation = Field(Evaluation(), description="When and how. Ours.")
    precision: Precision = Field(
        "auto",
        description="Of the network's arithmetic: bfloat16 on GPUs that have it, else float32; or "
        "as named (float16 with a scaled loss, GPUs only). Ours.",
    )
    mlperf_log: str | None = Field(
        None, min_length=1, description="File for MLPerf's log lines of a training. Ours."
    )
    tensorboard: str | None = Field(
        None, min_length=1, description="Folder for TensorBoard's event files. Ours."
    )
    tensorboard_interval: int = Field(
        3, ge=1, description="Batches from one loss in TensorBoard to the next. Ours."
    )
    submission: Submission = Field(Submission(), description="For mlperf_log. Ours.")
    optimizer: Optimizer | None = Field(None, description="Needed for training.")
    loss: Loss | None = Field(None, description="Needed for training.")

    @property
    def trains(self) -> bool:
        """Whether this run has a training phase."""
        return self.data.input_path is not None


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    """The keys of the section in which the (unknown) last part of `location` stands."""
    model: type[BaseModel] = Config
    for part in location[:-1]:
        if not isinstance(part, str) or part not in model.model_fields:
            continue
        found = _section_of(model.model_fields[part].annotation)
        if found is not None:
            model = found
    return list(model.model_fields)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if (found := _section_of(argument)) is not None:
            return found
    return None


def _where(path: str, dotted: str, unknown: bool, settings: Sequence[str]) -> str:
    """The place of a fault: in the file, or in a `--set KEY=VALUE` that brought the key."""
    for text in reversed(settings):
        key = text.partition("=")[0].strip()
        if dotted == key or dotted.startswith((f"{key}.", f"{key}[")):
            return f"--set {text}, {dotted}" if dotted != key else f"--set {text}"
        if key.startswith((f"{dotted}.", f"{dotted}[")):
            return f"--set {text}, {dotted}" if unknown else f"{path} with --set {text}, {dotted}"
    return f"{path}, {dotted}" if dotted else path


def _explained(path: str, error: ValidationError, settings: Sequence[str]) -> InputError:
    """pydantic's findings as one InputError, each with the key's full name."""
    faults = []
    for finding in error.errors():
        location = tuple(part for part in finding["loc"] if part not in (ONE, SEVERAL))
        dotted = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in location).lstrip(".")
        where = _where(path, dotted, finding["type"] == "extra_forbidden", settings)
        if finding["type"] == "extra_forbidden":
            keys = _known_keys(location)
            name = str(location[-1])
            faults.append(InputError(where, f"unknown key '{name}'{nearest(name, keys)}"))
        elif finding["type"] == "missing":
            faults.append(InputError(where, "this key is missing"))
        else:
            message = finding["msg"].removeprefix("Value error, ")
            given = "" if finding["type"] == "value_error" else f", found {finding['input']!r}"
            faults.append(InputError(where, message + given))
    return joined(faults, path)


def parse_config(content: Any, path: str = "configuration", settings: Sequence[str] = ()) -> Config:
    """A checked configuration from parsed JSON; `path` names it in messages, `settings` are the
    texts KEY=VALUE that were put into it before.

    Raises InputError for everything that the language does not allow, and for sections that a
    run needs but that are not there.
    """
    if not isinstance(content, dict) or not isinstance(content.get("neural_network"), dict):
        raise InputError(path, "no object 'neural_network'", '{"neural_network": {…}}')
    extra = [key for key in content if key != "neural_network"]
    if extra:
        raise InputError(path, f"unknown key '{extra[0]}' beside 'neural_network'")
    try:
        config = Config.model_validate(content["neural_network"])
    except ValidationError as error:
        raise _explained(path, error, settings) from None
    except UnicodeEncodeError as error:  # half of a pair of surrogates, which no text has
        found = f"holds {error.object[error.start : error.end]!a}, which is no character"
        raise InputError(path, found, "text", "remove it") from None
    _check_phases(config, path)
    return config


def _check_phases(config: Config, path: str) -> None:
    data = config.data
    if not config.trains and data.test_input_path is None:
        raise InputError(
            f"{path}, data", "neither input_path nor test_input_path", "at least one of them"
        )
    if config.trains:
        needed = {"layers": config.layers, "optimizer": config.optimizer, "loss": config.loss}
        missing = [key for key, value in needed.items() if value is None]
        # Targets are in the names of folders, beside, or in the file of prepared volumes.
        named = data.kinds[1] == "labels" or data.patches is not None
        missing += ["data.target_path"] if data.target_path is None and not named else []
        if missing:
            raise InputError(
                path, f"training needs {', '.join(missing)}", fix="add what is missing"
            )
    elif config.checkpoints.load is None:
        raise InputError(
            f"{path}, checkpoints.load",
            "nothing is trained and no checkpoint is loaded",
            "a checkpoint to evaluate, or data.input_path to train",
        )


def load_config(path: str | Path, settings: Sequence[str] = ()) -> Config:
    """The checked configuration in the file at `path`, after each of `settings`, which are texts
    like optimizer.learning_rate=1e-4, was put into it; raises InputError."""
    content = read_configuration(path)
    for text in settings:
        key, value = parsed(text)
        if isinstance(content, dict) and isinstance(content.get("neural_network"), dict):
            try:
                assign(content["neural_network"], key, value)
            except InputError as error:
                raise InputError(f"--set {text}", error.found, error.accepted) from None
    return parse_config(content, str(path), settings)
