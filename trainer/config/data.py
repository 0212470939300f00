"""The section `data`: where samples are, how they are read, and what is done to them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from trainer.config.section import Section, any_case, one_of
from trainer.config.volumes import Patches, RandomAffine, RandomFactor, RandomNoise, Slices
from trainer.errors import nearest

DATA_TYPES = ("images", "labels", "numpy", "hdf5", "mnist")
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
    random_flip: (
        Probability | Annotated[list[Probability], Field(min_length=3, max_length=3)] | None
    ) = Field(
        None,
        description="Volumes: probability, for each of the three axes by itself, or a list with "
        "one of each axis. Ours.",
    )
    random_affine: RandomAffine | None = Field(
        None, description="Volumes: {probability, degrees, zoom, shift}. Ours."
    )
    random_factor: RandomFactor | None = Field(
        None, description="Volumes: {probability, low, high}; inputs only. Ours."
    )
    random_noise: RandomNoise | None = Field(
        None, description="Volumes: {probability, std}; inputs only. Ours."
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


OF_VOLUMES = ("random_flip", "random_affine", "random_factor", "random_noise")
"""Transforms of crops of volumes; the others are of images."""

INPUT_TYPES = ("images", "numpy", "hdf5", "mnist")
InputType = Annotated[str, one_of("data type", INPUT_TYPES), any_case(INPUT_TYPES)]
TargetType = Annotated[str, one_of("data type", DATA_TYPES), any_case(DATA_TYPES)]
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
        "the values or colours of the masks mean. Of slices it names rows, like 000012. Ours.",
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
    patches: Patches | None = Field(
        None,
        description="Crops to train on, of prepared volumes: files of python -m trainer.prepare, "
        "which hold images and labels. Ours.",
    )
    slices: Slices | None = Field(
        None,
        description="For numpy: each file is one array (slices, height, width, channels), each of "
        "its rows a sample. Ours.",
    )
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
        if self.patches and (inputs != "hdf5" or self.slicers):
            raise ValueError('patches are of prepared volumes; accepted: type "hdf5", no slicers')
        if self.slices and (self.kinds != ("numpy", "numpy") or self.slicers):
            raise ValueError('slices are of arrays; accepted: type "numpy", no slicers')
        for name in ("transforms", "input_transforms", "target_transforms"):
            for one in getattr(self, name):
                if self.patches and one.name not in OF_VOLUMES:
                    accepted = ", ".join(OF_VOLUMES)
                    raise ValueError(f"{name}: {one.name} is of images; accepted: {accepted}")
                if not self.patches and one.name in OF_VOLUMES:
                    raise ValueError(f"{name}: {one.name} is of volumes, with data.patches")
                if not self.patches and inputs not in ("images", "mnist"):
                    raise ValueError(f"{name}: {inputs} takes none; they are of images")
        if inputs in ("numpy", "hdf5") and self.hdf5_outfile and not self.slicers:
            raise ValueError("hdf5_outfile puts blocks together, but there are no slicers")
        return self
