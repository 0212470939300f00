"""The configuration language: one JSON object `neural_network`, read and checked before any work.

Every key stands here beside its default and its meaning. A key that is known but that a run does
not use passes; an unknown key is an error that names the nearest known one. Paths are resolved
against the working directory. Torch-free: the driver renders what the trainer reads.

    config = load_config("config.json")
    config.optimizer.learning_rate
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from trainer.errors import InputError, joined, nearest

OPTIMIZERS = ("sgd", "rmsprop", "adagrad", "adam", "adamw")
LOSSES = ("bce", "dice", "nll")
LOSSES_OF_FOREGROUND = ("bce", "dice")
LOSSES_OF_CLASSES = ("nll", "dice")
"""Those for a network of one output, and for one that has an output a class."""

SCHEDULES = ("exponential",)
NOT_BUILT_YET: dict[str, tuple[str, ...]] = {
    "optimizer": ("lars", "lamb", "hessian"),
    "loss": ("mse", "jaccard", "focal", "lovasz"),
    "lr_scheduler": ("step", "multistep", "warmup"),
    "data type": ("labels", "numpy", "hdf5", "mnist"),
    "transform": ("center_crop", "jitter_crop", "rotate", "convert_color", "random_patches"),
}
"""Names of the language that a later version will run."""

OUT_OF_SCOPE = ("wasserstein", "yolov3", "burgers_pde", "poisson2d_pde", "poisson3d_pde")


def known_name(kind: str, name: Any, built: tuple[str, ...]) -> str:
    """`name` in lower case if it is in `built`; else an InputError that says what to use."""
    if not isinstance(name, str):
        raise InputError(kind, f"{name!r} is not a name", ", ".join(built))
    lower = name.lower()
    if lower in built:
        return lower
    if lower in NOT_BUILT_YET.get(kind, ()):
        raise InputError(kind, f"'{name}' is not built yet", ", ".join(built))
    if lower in OUT_OF_SCOPE:
        raise InputError(kind, f"'{name}' is not in the scope of this program", ", ".join(built))
    raise InputError(kind, f"unknown name '{name}'{nearest(name, built)}", ", ".join(built))


def _one_of(kind: str, built: tuple[str, ...]) -> BeforeValidator:
    def check(value: Any) -> str:
        try:
            return known_name(kind, value, built)
        except InputError as error:
            raise ValueError(f"{error.found}; accepted: {error.accepted}") from None

    return BeforeValidator(check)


class Section(BaseModel):
    """A JSON object of the language: its keys are checked, its values are not converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Checkpoints(Section):
    """What is written while training, and what training or prediction starts from."""

    save: str | None = Field(
        None, description="Folder for model_checkpoint_<epoch>.pt, best.pt and last.pt."
    )
    interval: int = Field(1, ge=1, description="Epochs between two model_checkpoint files.")
    load: str | None = Field(
        None, description="Weights to start from (.pt, .safetensors); parameters match by name."
    )


Probability = Annotated[float, Field(ge=0, le=1)]


class Transform(Section):
    """One entry of a list of transforms: an object with exactly one key."""

    resize: (
        Annotated[list[Annotated[int, Field(gt=0)]], Field(min_length=2, max_length=2)] | None
    ) = Field(None, description="[width, height] in pixels; masks by the nearest pixel.")
    normalize: dict[Literal["mean", "std"], float] | None = Field(
        None, description="(x - mean) / std on values in [0, 1]; mean 0 and std 1 if left out."
    )
    random_horizontal_flip: Probability | None = Field(None, description="Probability.")
    random_vertical_flip: Probability | None = Field(None, description="Probability.")
    random_rotate: Annotated[float, Field(ge=0, le=180)] | None = Field(
        None, description="Rotation by up to this many degrees to either side."
    )
    random_zoom: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="Zoom in by up to this share of the side length."
    )
    random_brightness: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="Adds up to this much, on values in [0, 1]; inputs only. Ours."
    )
    random_contrast: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="Scales the distance to the mean by 1 ± up to this; inputs only. Ours."
    )

    @property
    def name(self) -> str:
        """The one key."""
        return next(iter(self.model_fields_set))

    @property
    def value(self) -> Any:
        """The value of the one key."""
        return getattr(self, self.name)

    @model_validator(mode="before")
    @classmethod
    def _one_known_key(cls, value: Any) -> Any:
        if not isinstance(value, dict) or len(value) != 1:
            raise ValueError('a transform is an object with one key, like {"resize": [256, 256]}')
        name = next(iter(value))
        if name in NOT_BUILT_YET["transform"]:
            raise ValueError(f"'{name}' is not built yet; accepted: {', '.join(cls.model_fields)}")
        return value


DataType = Annotated[Literal["images"], _one_of("data type", ("images",))]


class Data(Section):
    """Where images and masks are, how they are read, and what is done to them."""

    type: DataType | None = Field(None, description="Kind of inputs and targets: images.")
    input_type: DataType | None = Field(None, description="Kind of inputs.")
    target_type: DataType | None = Field(None, description="Kind of targets.")
    input_path: str | None = Field(
        None, description="Folder of training inputs; left out, nothing is trained."
    )
    target_path: str | None = Field(
        None,
        description="Folder of training targets (masks); the same as input_path where masks lie "
        "beside their images.",
    )
    test_input_path: str | None = Field(
        None, description="Folder of test inputs; left out, nothing is evaluated on it."
    )
    test_target_path: str | None = Field(
        None,
        description="Folder of test targets, or the same as test_input_path; left out, test "
        "inputs are predicted only.",
    )
    test_output_path: str | None = Field(
        None, description="Folder for predictions, output_<epoch>.h5; left out, none are kept."
    )
    split: str | None = Field(
        None,
        description="Split file: training trains on its part `training` and is evaluated on its "
        "part `validation`, a run without training evaluates its part `test`; it also says what "
        "the values or colours of the masks mean. Ours.",
    )
    batch_size: int = Field(64, ge=1, description="Images in a training batch.")
    test_batch_size: int = Field(64, ge=1, description="Images in an evaluation batch.")
    preload: bool = Field(False, description="Read everything first; ours does where it fits.")
    grayscale: bool = Field(False, description="One channel for inputs and targets.")
    input_grayscale: bool = Field(False, description="One channel for inputs.")
    target_grayscale: bool = Field(False, description="One channel for targets.")
    target_is_mask: bool = Field(False, description="Targets are masks: nearest interpolation.")
    training_tag: str | None = Field(None, description="For labels from folder names; unused.")
    test_tag: str | None = Field(None, description="For labels from folder names; unused.")
    testing_tag: str | None = Field(None, description="Another spelling of test_tag; unused.")
    transforms: list[Transform] = Field(
        [],
        description="For inputs and targets, each at most once. However they are listed: resize, "
        "then flips, rotation and zoom as one resampling, then contrast and brightness, then "
        "normalize. The random ones act in training only.",
    )
    input_transforms: list[Transform] = Field([], description="For inputs only, after those.")
    target_transforms: list[Transform] = Field([], description="For targets only.")
    slicers: list[dict[str, Any]] = Field([], description="For volumes; unused with images.")
    hdf5_outfile: str | None = Field(None, description="For volumes; unused with images.")
    hdf5_precision: Literal["single", "half"] = Field("single", description="For volumes; unused.")
    domain_size: Any = Field(None, description="For differential equations; unused.")
    num_examples: Any = Field(None, description="For differential equations; unused.")
    num_test_examples: Any = Field(None, description="For differential equations; unused.")
    bc_frequency: Any = Field(None, description="For differential equations; unused.")
    bc_type: Any = Field(None, description="For differential equations; unused.")

    @field_validator("transforms", "input_transforms", "target_transforms")
    @classmethod
    def _each_once(cls, transforms: list[Transform]) -> list[Transform]:
        names = [transform.name for transform in transforms]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"'{name}' stands twice; accepted: each transform once")
        return transforms


class LearningRateSchedule(Section):
    """How the learning rate changes; stepped at the end of each epoch."""

    type: Annotated[str, _one_of("lr_scheduler", SCHEDULES)] = Field(
        description="exponential: times gamma after each epoch."
    )
    gamma: Annotated[float, Field(gt=0)] = Field(0.95, description="Factor of each epoch.")
    verbose: bool = Field(True, description="Print the rate when it changes.")
    step_size: int | None = Field(None, description="For Step; unused.")
    milestones: list[int] = Field([], description="For MultiStep; unused.")
    num_epochs: int | None = Field(None, description="For Warmup; unused.")
    start_factor: float | None = Field(None, description="For Warmup; unused.")


class Optimizer(Section):
    """The optimizer and its constants; each optimizer takes those that it knows."""

    type: Annotated[str, _one_of("optimizer", OPTIMIZERS)] = Field(
        description=f"One of {', '.join(OPTIMIZERS)}, in any case."
    )
    learning_rate: float = Field(0.01, gt=0, description="For every optimizer 0.01 if left out.")
    momentum: float = Field(0.0, ge=0, description="SGD, RMSprop.")
    dampening: float = Field(0.0, description="SGD.")
    nesterov: bool = Field(False, description="SGD.")
    weight_decay: float = Field(0.0, ge=0, description="All; AdamW too starts from 0.")
    lr_decay: float = Field(0.0, ge=0, description="Adagrad.")
    beta1: float = Field(0.9, ge=0, lt=1, description="Adam, AdamW.")
    beta2: float = Field(0.999, ge=0, lt=1, description="Adam, AdamW.")
    eps: float = Field(1e-8, gt=0, description="Adam, AdamW, RMSprop.")
    amsgrad: bool = Field(False, description="Adam, AdamW.")
    alpha: float = Field(0.99, ge=0, lt=1, description="RMSprop.")
    centered: bool = Field(False, description="RMSprop.")
    eta: float = Field(1e-3, description="For LARS; unused.")
    max_iterations: int = Field(2000, description="For Hessian; unused.")
    max_func_eval: int = Field(4000, description="For Hessian; unused.")
    absolute_tolerance: float = Field(1e-8, description="For Hessian; unused.")
    relative_tolerance: float = Field(1e-8, description="For Hessian; unused.")
    lr_scheduler: LearningRateSchedule | None = Field(None, description="Left out: constant.")

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Optimizer:
        if self.type == "sgd" and self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ValueError("nesterov needs a momentum above 0 and dampening 0")
        return self


class Loss(Section):
    """What training makes small."""

    function: Annotated[str, _one_of("loss", LOSSES)] = Field(
        description=f"One of {', '.join(LOSSES)}, in any case."
    )
    source: Literal["sigmoid", "softmax", "log_softmax"] | None = Field(
        None, description="What the output already is; it must fit the network's activation."
    )
    weight: list[float] | None = Field(None, description="For NLL; not built yet.")
    ignore_index: int | None = Field(None, description="For NLL; not built yet.")
    eps: float = Field(1e-7, gt=0, description="Dice: keeps an empty batch finite.")
    diffusion_coeff: float = Field(0.0, description="For differential equations; unused.")
    boundary_factor: float = Field(1.0, description="For differential equations; unused.")

    @model_validator(mode="after")
    def _no_class_is_weighted(self) -> Loss:
        for name in ("weight", "ignore_index"):
            if getattr(self, name) is not None:
                raise ValueError(f"'{name}' with {self.function} is not built yet; leave it out")
        return self


class Config(Section):
    """Everything that one run of the trainer does."""

    outfile: str | None = Field(
        None, description="Text logs <stem>_train<ext> and <stem>_test<ext>; left out, none."
    )
    num_epochs: int = Field(1, ge=1, description="Epochs of this run.")
    layers: str | list[dict[str, Any]] | None = Field(
        None, description="Network file; without training the checkpoint knows it."
    )
    debug: bool = Field(False, description="Accepted; unused.")
    debug_interval: int | None = Field(None, description="Accepted; unused.")
    seed: int | None = Field(
        None, ge=0, description="Weights, order, augmentation; else the split's seed, else 0. Ours."
    )
    deterministic: bool = Field(False, description="Repeatable on a GPU too, slower. Ours.")
    checkpoints: Checkpoints = Field(Checkpoints(), description="Weights in and out.")
    data: Data = Field(description="Images and masks.")
    optimizer: Optimizer | None = Field(None, description="Needed for training.")
    loss: Loss | None = Field(None, description="Needed for training.")

    @property
    def trains(self) -> bool:
        """Whether this run has a training phase."""
        return self.data.input_path is not None


def read_json(path: str | Path, what: str) -> Any:
    """A JSON file; a syntax error or a key that stands twice in one object is an InputError."""
    path = Path(path)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        for key in keys:
            if keys.count(key) > 1:
                raise InputError(
                    str(path), f"the key '{key}' stands twice", "each key once", "delete one"
                )
        return dict(pairs)

    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(str(path), f"no such {what}", "a JSON file", "check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(str(path), f"the {what} cannot be read ({error})", "a JSON file") from None
    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}, line {error.lineno}, column {error.colno}",
            f"the {what} is not JSON ({error.msg})",
            "a JSON object",
            "look for a missing comma, bracket or quote just before that place",
        ) from None


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


def _explained(path: str, error: ValidationError) -> InputError:
    """pydantic's findings as one InputError, each with the key's full name."""
    faults = []
    for finding in error.errors():
        location = finding["loc"]
        dotted = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in location).lstrip(".")
        where = f"{path}, {dotted}" if dotted else path
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


def parse_config(content: Any, path: str = "configuration") -> Config:
    """A checked configuration from parsed JSON; `path` names it in messages.

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
        raise _explained(path, error) from None
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
        missing += ["data.target_path"] if data.target_path is None else []
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


def load_config(path: str | Path) -> Config:
    """The checked configuration in the file at `path`; raises InputError."""
    return parse_config(read_json(path, "configuration"), str(path))
