"""The configuration language: one JSON object `neural_network`, read and checked before any work.

Every key stands here beside its default and its meaning. A key that is known but that a run does
not use passes; an unknown key is an error that names the nearest known one. Paths are resolved
against the working directory. Torch-free: the driver renders what the trainer reads.

    config = load_config("config.json")
    config.optimizer.learning_rate
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from trainer.errors import InputError, joined, nearest

OPTIMIZERS = ("sgd", "rmsprop", "adagrad", "adam", "adamw", "lars", "lamb", "hessian")
LOSSES = ("bce", "dice", "nll", "mse", "jaccard", "focal", "lovasz")
LOSSES_OF_FOREGROUND = ("bce", "dice", "jaccard", "focal", "lovasz", "mse")
LOSSES_OF_CLASSES = ("nll", "dice", "jaccard", "focal", "lovasz", "bce", "mse")
"""Those for a network of one output, and for one that has an output a class."""

SCHEDULES = ("exponential", "step", "multistep", "warmup")
DATA_TYPES = ("images", "labels", "numpy", "hdf5", "mnist")
OUT_OF_SCOPE = (
    *("wasserstein", "yolov3", "burgers_pde", "poisson2d_pde", "poisson3d_pde"),
    "pde",
)
"""Names of the language for differential equations, GANs and object detection."""


def known_name(kind: str, name: Any, built: tuple[str, ...]) -> str:
    """`name` in lower case if it is in `built`; else an InputError that says what to use."""
    if not isinstance(name, str):
        raise InputError(kind, f"{name!r} is not a name", ", ".join(built))
    lower = name.lower()
    if lower in built:
        return lower
    if lower in OUT_OF_SCOPE:
        raise InputError(kind, f"'{name}' is not in the scope of this program", ", ".join(built))
    raise InputError(kind, f"unknown name '{name}'{nearest(name, built)}", ", ".join(built))


def _any_case(names: Sequence[str]) -> WithJsonSchema:
    """In the JSON Schema: the names, which an editor offers, in any case."""
    letters = "|".join("".join(f"[{c}{c.upper()}]" if c.isalpha() else c for c in n) for n in names)
    return WithJsonSchema(
        {"type": "string", "anyOf": [{"enum": list(names)}, {"pattern": f"^({letters})$"}]}
    )


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
        None, description="Weights to start from (.pt, .safetensors, .h5 of Keras); by name."
    )


Probability = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
MOST_PIXELS = 20_000
"""Of a side of an image."""

Sides = Annotated[
    list[Annotated[int, Field(gt=0, le=MOST_PIXELS)]], Field(min_length=2, max_length=2)
]
Degrees = Annotated[float, Field(ge=-180, le=180)]
COLOUR_CONVERSIONS = (
    *("BGR2RGB", "RGB2BGR", "BGR2GRAY", "RGB2GRAY", "GRAY2BGR", "GRAY2RGB"),
    *("BGR2HSV", "RGB2HSV", "BGR2YCrCb", "RGB2YCrCb"),
)
ColourConversion = Annotated[str, AfterValidator(lambda name: _conversion(name))]


def _conversion(name: str) -> str:
    known = {one.lower(): one for one in COLOUR_CONVERSIONS}
    if found := known.get(name.lower().removeprefix("color_")):
        return found
    hint = nearest(name, COLOUR_CONVERSIONS)
    raise ValueError(f"unknown name '{name}'{hint}; accepted: {', '.join(COLOUR_CONVERSIONS)}")


def _above_zero(scale: dict[str, float]) -> dict[str, float]:
    if not scale.get("std", 1.0) > 0:
        raise ValueError(f"std is {scale['std']:g}; accepted: above 0")
    return scale


Normalization = Annotated[dict[Literal["mean", "std"], float], AfterValidator(_above_zero)]


class RandomPatches(Section):
    """Squares that are cut out of the input; the target is what was cut out, on black."""

    number: int = Field(ge=1, le=10_000, description="Squares in an image.")
    size: int = Field(ge=1, le=MOST_PIXELS, description="Their side in pixels.")


class Transform(Section):
    """One entry of a list of transforms: an object with exactly one key."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    resize: Sides | None = Field(
        None, description="[width, height] in pixels; masks by the nearest pixel."
    )
    center_crop: Sides | None = Field(
        None, description="[width, height] in pixels of the middle that is kept."
    )
    jitter_crop: Share | None = Field(
        None,
        description="Crops c * S / 2 off each end of a side S, c uniform in [0, this); brought "
        "back to the size before, so that a batch has one size. Training only.",
    )
    random_horizontal_flip: Probability | None = Field(None, description="Probability.")
    random_vertical_flip: Probability | None = Field(None, description="Probability.")
    random_zoom: Share | None = Field(
        None, description="Zoom in by up to this share of the side length. Training only."
    )
    rotate: Degrees | None = Field(
        None, description="Rotation by so many degrees, clockwise; always."
    )
    random_rotate: Annotated[float, Field(ge=0, le=180)] | None = Field(
        None, description="Rotation by up to this many degrees to either side. Training only."
    )
    convert_color: ColourConversion | None = Field(
        None,
        description="Name of OpenCV's conversion, like BGR2RGB; inputs only. Colours are in "
        "OpenCV's order, BGR, until converted; a network file of ours gets RGB unasked.",
    )
    normalize: Normalization | None = Field(
        None, description="(x - mean) / std on values in [0, 1]; mean 0 and std 1 if left out."
    )
    random_patches: RandomPatches | None = Field(
        None,
        description="{number, size}: self-supervised; the input loses so many squares, the target "
        "is these squares on black, anew in each epoch.",
    )
    random_brightness: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="Adds up to this much, on values in [0, 1]; inputs only. Ours."
    )
    random_contrast: Share | None = Field(
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

    @property
    def fixed(self) -> bool:
        """Whether it does the same to every sample, in predictions too."""
        return self.name in ("resize", "center_crop", "rotate", "convert_color", "normalize")

    @property
    def told(self) -> str:
        """The value as a log tells it."""
        value = self.value.model_dump() if isinstance(self.value, BaseModel) else self.value
        if not isinstance(value, dict):
            return str(value)
        if self.name == "normalize":
            value = {"mean": 0, "std": 1, **value}
        return ", ".join(f"{key}: {number:g}" for key, number in value.items())

    @model_validator(mode="before")
    @classmethod
    def _one_known_key(cls, value: Any) -> Any:
        if not isinstance(value, dict) or len(value) != 1:
            raise ValueError('a transform is an object with one key, like {"resize": [256, 256]}')
        if next(iter(value.values())) is None:
            raise ValueError(f"'{next(iter(value))}' has no value")
        return value


INPUT_TYPES = ("images", "numpy", "hdf5", "mnist")
InputType = Annotated[str, _one_of("data type", INPUT_TYPES), _any_case(INPUT_TYPES)]
TargetType = Annotated[str, _one_of("data type", DATA_TYPES), _any_case(DATA_TYPES)]
Voxels = Annotated[int, Field(gt=0, lt=2**31)]
Lengths = Annotated[list[Voxels], Field(min_length=1, max_length=3)]


class Slicer(Section):
    """One set of blocks that volumes are cut into. All lists have one number an axis, without the
    channels."""

    name: str | None = Field(
        None, min_length=1, description="Of the dataset in hdf5_outfile; slices_1, … if left out."
    )
    sizes: Lengths = Field(description="Of a block, in voxels; an axis of size 1 is dropped.")
    padding: list[Annotated[int, Field(ge=0, lt=2**31)]] | None = Field(
        None, description="Zeros on both ends of each block; not together with padded_sizes."
    )
    padded_sizes: Lengths | None = Field(
        None, description="Zeros around each block up to these sizes, the odd one at the end."
    )
    strides: Lengths | None = Field(
        None, description="From block to block; sizes if left out, smaller ones overlap."
    )
    discard_remainders: bool = Field(
        False, description="Leave out what is left at the end; else it is padded with zeros."
    )
    transpose: bool = Field(False, description="Swap the two axes of a flat block.")

    @model_validator(mode="after")
    def _one_number_an_axis(self) -> Slicer:
        for name in ("padding", "padded_sizes", "strides"):
            value = getattr(self, name)
            if value is not None and len(value) != len(self.sizes):
                raise ValueError(f"{name} has {len(value)} numbers, sizes has {len(self.sizes)}")
        if self.padding is not None and self.padded_sizes is not None:
            raise ValueError("padding and padded_sizes stand together; accepted: one of them")
        if self.padded_sizes and any(
            p < s for p, s in zip(self.padded_sizes, self.sizes, strict=True)
        ):
            raise ValueError("padded_sizes are smaller than sizes")
        if self.transpose and sum(size > 1 for size in self.sizes) != 2:
            raise ValueError("transpose needs sizes with two numbers above 1, a flat block")
        return self


class Data(Section):
    """Where images and masks are, how they are read, and what is done to them."""

    type: TargetType | None = Field(
        None,
        description="Kind of inputs and targets: images; numpy (.npy, .npz); hdf5; mnist (the "
        "published IDX files). images if left out.",
    )
    input_type: InputType | None = Field(None, description="Kind of inputs, where they differ.")
    target_type: TargetType | None = Field(
        None,
        description="Kind of targets, where they differ; labels: the class of an image is the "
        "name of its folder.",
    )
    input_path: str | None = Field(
        None,
        description="Folder of training inputs, read with its subfolders, or one .npy, .npz or "
        ".h5 file; left out, nothing is trained.",
    )
    target_path: str | None = Field(
        None,
        description="Training targets, likewise (masks); the same as input_path where masks lie "
        "beside their images, or where an image is its own target.",
    )
    test_input_path: str | None = Field(
        None, description="Test inputs, likewise; left out, nothing is evaluated."
    )
    test_target_path: str | None = Field(
        None,
        description="Test targets, likewise; left out, test inputs are predicted only.",
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
    batch_size: int = Field(64, ge=1, lt=2**31, description="Samples in a training batch.")
    test_batch_size: int = Field(64, ge=1, lt=2**31, description="Samples in an evaluation batch.")
    preload: bool = Field(False, description="Read everything first; ours does where it fits.")
    grayscale: bool = Field(False, description="One channel for inputs and targets.")
    input_grayscale: bool = Field(False, description="One channel for inputs.")
    target_grayscale: bool = Field(False, description="One channel for targets.")
    target_is_mask: bool = Field(False, description="Targets are masks: nearest interpolation.")
    training_tag: str | None = Field(
        None,
        description="For labels: the part of the path below which the folder of the class lies; "
        "left out: input_path.",
    )
    test_tag: str | None = Field(None, description="The same for test inputs.")
    testing_tag: str | None = Field(None, description="Another spelling of test_tag.")
    transforms: list[Transform] = Field(
        [],
        description="For inputs and targets, in this order; those of images only. What turns, "
        "flips or zooms is done as one resampling. The random ones act in training only.",
    )
    input_transforms: list[Transform] = Field([], description="For inputs only, after those.")
    target_transforms: list[Transform] = Field([], description="For targets only, after those.")
    slicers: list[Slicer] = Field(
        [], description="For numpy and hdf5: the blocks that each array is cut into."
    )
    hdf5_outfile: str | None = Field(
        None,
        description="File for the prediction of whole arrays, put together from their blocks; "
        "where blocks overlap, their mean.",
    )
    hdf5_precision: Literal["single", "half"] = Field(
        "single", description="Of hdf5_outfile: 32 or 16 bit."
    )
    domain_size: Any = Field(None, description="For differential equations; unused.")
    num_examples: Any = Field(None, description="For differential equations; unused.")
    num_test_examples: Any = Field(None, description="For differential equations; unused.")
    bc_frequency: Any = Field(None, description="For differential equations; unused.")
    bc_type: Any = Field(None, description="For differential equations; unused.")

    @property
    def kinds(self) -> tuple[str, str]:
        """Of inputs and targets: images, numpy, hdf5 or mnist, and labels for targets."""
        inputs = self.input_type or self.type or "images"
        default = "labels" if inputs == "mnist" else inputs
        targets = self.target_type or (self.type if self.type != "mnist" else None) or default
        return inputs, "labels" if targets == "mnist" else targets

    @model_validator(mode="after")
    def _fits_together(self) -> Data:
        if self.type == "labels" and self.input_type is None:
            raise ValueError(
                "type: 'labels' is a kind of targets; accepted: target_type, beside input_type"
            )
        inputs, targets = self.kinds
        if inputs == "images" and targets not in ("images", "labels"):
            raise ValueError(f"inputs are images and targets {targets}; accepted: images, labels")
        if inputs != "images" and targets == "images":
            raise ValueError(f"inputs are {inputs} and targets images; accepted: numpy, hdf5")
        for name in ("transforms", "input_transforms", "target_transforms"):
            if inputs not in ("images", "mnist") and getattr(self, name):
                raise ValueError(f"{name}: {inputs} takes none; they are of images")
        if inputs in ("numpy", "hdf5") and self.hdf5_outfile and not self.slicers:
            raise ValueError("hdf5_outfile puts blocks together, but there are no slicers")
        return self


class LearningRateSchedule(Section):
    """How the learning rate changes; stepped at the end of each epoch."""

    type: Annotated[str, _one_of("lr_scheduler", SCHEDULES), _any_case(SCHEDULES)] = Field(
        description="Exponential: times gamma after each epoch. Step: times gamma after every "
        "step_size epochs. MultiStep: times gamma after each epoch of milestones. Warmup: from "
        "start_factor times the rate straight to the rate, in num_epochs."
    )
    gamma: Annotated[float, Field(gt=0)] = Field(
        0.95, description="Exponential, Step, MultiStep: the factor."
    )
    step_size: int = Field(1, ge=1, description="Step: epochs from change to change.")
    milestones: list[Annotated[int, Field(ge=1)]] = Field(
        [], description="MultiStep: the epochs after which the rate changes."
    )
    num_epochs: int = Field(5, ge=1, description="Warmup: epochs until the whole rate is reached.")
    start_factor: float = Field(0.1, gt=0, le=1, description="Warmup: share of the rate at first.")
    verbose: bool = Field(True, description="Print the rate when it changes.")

    @property
    def told(self) -> str:
        """In words, with what acts."""
        acting = [f"{n} {getattr(self, n)}" for n in SCHEDULE_FIELDS[self.type]]
        return ", ".join([self.type, *acting])

    @model_validator(mode="after")
    def _has_milestones(self) -> LearningRateSchedule:
        if self.type == "multistep" and not self.milestones:
            raise ValueError("MultiStep needs milestones, like [10, 20]")
        return self


SCHEDULE_FIELDS: dict[str, tuple[str, ...]] = {
    "exponential": ("gamma",),
    "step": ("gamma", "step_size"),
    "multistep": ("gamma", "milestones"),
    "warmup": ("num_epochs", "start_factor"),
}
ONE, SEVERAL = "one schedule", "several schedules"
Schedules = Annotated[
    Annotated[LearningRateSchedule, Tag(ONE)] | Annotated[list[LearningRateSchedule], Tag(SEVERAL)],
    Discriminator(lambda value: SEVERAL if isinstance(value, list) else ONE),
]
OPTIMIZER_FIELDS: dict[str, tuple[str, ...]] = {
    "sgd": ("learning_rate", "momentum", "dampening", "weight_decay", "nesterov"),
    "rmsprop": ("learning_rate", "alpha", "eps", "weight_decay", "momentum", "centered"),
    "adagrad": ("learning_rate", "lr_decay", "weight_decay"),
    "adam": ("learning_rate", "beta1", "beta2", "weight_decay", "eps", "amsgrad"),
    "adamw": ("learning_rate", "beta1", "beta2", "weight_decay", "eps", "amsgrad"),
    "lars": ("learning_rate", "momentum", "dampening", "weight_decay", "nesterov", "eta"),
    "lamb": ("learning_rate", "beta1", "beta2", "weight_decay", "eps"),
    "hessian": (
        *("max_iterations", "max_func_eval"),
        *("absolute_tolerance", "relative_tolerance"),
    ),
}
"""The constants that act, for each schedule and optimizer, in the order of the log."""


def _of(name: str) -> str:
    """Which optimizers a constant is for, in words."""
    return ", ".join(kind for kind, fields in OPTIMIZER_FIELDS.items() if name in fields)


class Optimizer(Section):
    """The optimizer and its constants; each optimizer takes those that it knows."""

    type: Annotated[str, _one_of("optimizer", OPTIMIZERS), _any_case(OPTIMIZERS)] = Field(
        description=f"One of {', '.join(OPTIMIZERS)}, in any case."
    )
    learning_rate: float = Field(0.01, gt=0, description="For every optimizer 0.01 if left out.")
    momentum: float = Field(0.0, ge=0, description=f"For {_of('momentum')}.")
    dampening: float = Field(0.0, description=f"For {_of('dampening')}.")
    nesterov: bool = Field(False, description=f"For {_of('nesterov')}.")
    weight_decay: float = Field(0.0, ge=0, description=f"For {_of('weight_decay')}.")
    lr_decay: float = Field(0.0, ge=0, description=f"For {_of('lr_decay')}.")
    beta1: float = Field(0.9, ge=0, lt=1, description=f"For {_of('beta1')}.")
    beta2: float = Field(0.999, ge=0, lt=1, description=f"For {_of('beta2')}.")
    eps: float = Field(1e-8, gt=0, description=f"For {_of('eps')}.")
    amsgrad: bool = Field(False, description="For adam, adamw; lamb has none and refuses it.")
    alpha: float = Field(0.99, ge=0, lt=1, description=f"For {_of('alpha')}.")
    centered: bool = Field(False, description=f"For {_of('centered')}.")
    eta: float = Field(1e-3, gt=0, description=f"For {_of('eta')}: the trust coefficient.")
    max_iterations: int = Field(2000, ge=1, description="For hessian: most iterations in a batch.")
    max_func_eval: int = Field(4000, ge=1, description="For hessian: most evaluations in a batch.")
    absolute_tolerance: float = Field(
        1e-8, ge=0, description="For hessian: a gradient this small ends a batch."
    )
    relative_tolerance: float = Field(
        1e-8, ge=0, description="For hessian: a step or change this small ends a batch."
    )
    lr_scheduler: Schedules | None = Field(
        None, description="One, or a list whose factors are multiplied; left out: constant."
    )

    @property
    def schedules(self) -> list[LearningRateSchedule]:
        """The schedules, none for a constant rate."""
        if self.lr_scheduler is None:
            return []
        return self.lr_scheduler if isinstance(self.lr_scheduler, list) else [self.lr_scheduler]

    @model_validator(mode="after")
    def _constants_fit(self) -> Optimizer:
        momentary = self.type in ("sgd", "lars") and self.nesterov
        if momentary and (self.momentum == 0 or self.dampening != 0):
            raise ValueError("nesterov needs a momentum above 0 and dampening 0")
        if self.type == "lamb" and self.amsgrad:
            raise ValueError("lamb has no amsgrad; leave it out")
        return self


LOSS_FIELDS: dict[str, tuple[str, ...]] = {
    "bce": ("source", "weight", "ignore_index"),
    "dice": ("source", "weight", "ignore_index", "eps"),
    "nll": ("weight", "ignore_index"),
    "mse": ("weight", "ignore_index"),
    "jaccard": ("source", "weight", "ignore_index", "eps"),
    "focal": ("source", "weight", "ignore_index", "gamma"),
    "lovasz": ("source", "ignore_index"),
}
"""The keys that act, for each loss."""


class Loss(Section):
    """What training makes small."""

    function: Annotated[str, _one_of("loss", LOSSES), _any_case(LOSSES)] = Field(
        description=f"One of {', '.join(LOSSES)}, in any case."
    )
    source: Literal["sigmoid", "softmax", "log_softmax"] | None = Field(
        None,
        description="What the output already is; left out: what the network ends in. Of a network "
        "that ends in none of these, what its output is to be taken for.",
    )
    weight: list[Annotated[float, Field(ge=0)]] | None = Field(
        None, description="One number a class: how much it counts."
    )
    ignore_index: int | None = Field(
        None,
        description="Targets of this class, or of this value where it is no class, do not count.",
    )
    eps: float = Field(1e-7, gt=0, description="dice, jaccard: keeps an empty batch finite.")
    gamma: float = Field(
        2.0, ge=0, description="focal: how much easy pixels count less; 0 is cross-entropy. Ours."
    )
    diffusion_coeff: float = Field(0.0, description="For differential equations; unused.")
    boundary_factor: float = Field(1.0, description="For differential equations; unused.")

    @model_validator(mode="after")
    def _weighs_something(self) -> Loss:
        if self.weight is not None and (not self.weight or not any(self.weight)):
            raise ValueError("weight: no class counts")
        return self


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
        ge=0,
        lt=2**63,
        description="Weights, order, augmentation; else the split's seed, else 0. Ours.",
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
        content: dict[str, Any] = {}
        for key, value in pairs:
            if key in content:
                found = f"the key '{key}' stands twice"
                raise InputError(str(path), found, "each key once", "delete one")
            content[key] = value
        return content

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
    except (RecursionError, ValueError) as error:
        told = "nested too deeply" if isinstance(error, RecursionError) else "a number is too long"
        raise InputError(str(path), f"the {what} cannot be read: {told}", "a JSON object") from None


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
        location = tuple(part for part in finding["loc"] if part not in (ONE, SEVERAL))
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
        named = data.kinds[1] == "labels"  # targets are in the names of folders, or beside
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


def load_config(path: str | Path) -> Config:
    """The checked configuration in the file at `path`; raises InputError."""
    return parse_config(read_json(path, "configuration"), str(path))
