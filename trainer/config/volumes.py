"""Sections about volumes: crops to train on, what is done to them, and how whole ones are read."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainer.config.section import Section

Sizes = Annotated[list[Annotated[int, Field(ge=1, le=4096)]], Field(min_length=3, max_length=3)]
Chance = Annotated[float, Field(ge=0, le=1)]


class Patches(Section):
    """Crops of prepared volumes, drawn anew in each epoch."""

    size: Sizes = Field(description="[depth, height, width] in voxels, the order of the arrays.")
    per_case: int = Field(1, ge=1, le=100_000, description="Crops of each case in an epoch.")
    foreground: Chance = Field(
        1 / 3, description="Share of crops that are laid around foreground; the others anywhere."
    )
    around: Literal["voxel", "component"] = Field(
        "voxel",
        description="Around a voxel of a class that the case has, or (MLPerf) around one of the "
        "two largest parts of the class.",
    )
    never_last: bool = Field(
        False,
        description="MLPerf's slip: a crop never begins at the last place where one fits.",
    )


class Slices(Section):
    """Rows of arrays (slices, height, width, channels): which channels and masks are used."""

    channels: list[int | str] = Field(
        [], description="Of the inputs, by number or name (t1, t2, flair, t1ce); none: all."
    )
    target: list[int | str] = Field(
        ["wt"],
        min_length=1,
        description="Masks whose union is the target, by number or name: necrotic, edema, "
        "enhancing; wt (whole tumour), tc (core), et (enhancing tumour).",
    )


class RandomAffine(Section):
    """Turned and scaled as one resampling, inputs and targets alike."""

    probability: Chance = Field(1.0, description="That a crop is moved at all.")
    degrees: float = Field(0.0, ge=0, le=180, description="Up to so much about each axis.")
    zoom: float = Field(0.0, ge=0, lt=1, description="Scaled by 1 ± up to this.")
    shift: float = Field(0.0, ge=0, lt=1, description="Moved by up to this share of each side.")


class RandomFactor(Section):
    """Inputs times a number."""

    probability: Chance = Field(1.0, description="That a crop is multiplied at all.")
    low: float = Field(description="The smallest factor.")
    high: float = Field(description="The largest; all between are equally likely.")

    @model_validator(mode="after")
    def _ordered(self) -> RandomFactor:
        if self.low > self.high:
            raise ValueError(f"low is {self.low:g}, above high {self.high:g}")
        return self


class RandomNoise(Section):
    """Gaussian noise upon inputs."""

    probability: Chance = Field(1.0, description="That a crop gets noise at all.")
    std: float = Field(gt=0, description="Its standard deviation is drawn from 0 to this.")


class Window(Section):
    """How whole volumes are predicted: in overlapping windows, their logits averaged."""

    size: Sizes | None = Field(
        None, description="[depth, height, width] in voxels; left out: that of the crops."
    )
    overlap: float = Field(0.5, ge=0, lt=1, description="Share of a window's side.")
    weighting: Literal["gaussian", "gaussian_cube_root", "constant"] = Field(
        "gaussian",
        description="How much the voxels of a window count: sigma an eighth of its side; or "
        "(MLPerf) the cube root of that; or all alike.",
    )
    fill: float = Field(0.0, description="Value around volumes that are smaller than a window.")
    cut_remainders: bool = Field(
        False,
        description="As in MLPerf: what is left of an axis after whole steps is cut off where it "
        "is less than half a step, else filled up to a whole one.",
    )
    mirror: bool = Field(False, description="Mean over the eight mirror images; slower.")


class Evaluation(Section):
    """When evaluations happen, what they measure, and when they end a training."""

    start_at: int | None = Field(None, ge=1, description="Epoch of the first evaluation; 1.")
    every: int | None = Field(None, ge=1, description="Epochs from one to the next; 1.")
    start_after_samples: int | None = Field(
        None,
        ge=1,
        description="In the place of start_at: the first epoch by whose end so many samples were "
        "trained on (MLPerf: 168000).",
    )
    every_samples: int | None = Field(
        None, ge=1, description="In the place of every, likewise (MLPerf: 3360)."
    )
    metric: Literal["accuracy", "foreground_dice", "iou"] | None = Field(
        None,
        description="Chooses the best epoch and is compared with stop_at; left out: that of the "
        "split, else foreground_dice for volumes and accuracy for others.",
    )
    stop_at: float | None = Field(
        None, gt=0, le=1, description="The training ends when the metric reaches this."
    )
    diverged_below: float | None = Field(
        None, ge=0, lt=1, description="The training ends, aborted, when the metric is below this."
    )
    window: Window = Field(Window(), description="For volumes.")
    hd95: bool = Field(
        False, description="95th percentile of the surface distance of each class, in mm."
    )
    surface_dice_mm: float | None = Field(
        None, gt=0, description="Share of both surfaces that lie within so many mm of each other."
    )

    @model_validator(mode="after")
    def _one_way_each(self) -> Evaluation:
        for one, other in (("start_at", "start_after_samples"), ("every", "every_samples")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise ValueError(f"{one} and {other} stand together; accepted: one of them")
        return self

    def first(self, samples_per_epoch: int) -> int:
        """The epoch of the first evaluation."""
        if self.start_after_samples is not None:
            return -(-self.start_after_samples // samples_per_epoch)
        return self.start_at or 1

    def interval(self, samples_per_epoch: int) -> int:
        """Epochs from one evaluation to the next."""
        if self.every_samples is not None:
            return -(-self.every_samples // samples_per_epoch)
        return self.every or 1

    def due(self, epoch: int, epochs: int, samples_per_epoch: int) -> bool:
        """Whether epoch number `epoch` (1, 2, …) of `epochs` is evaluated; the last always is."""
        first, interval = self.first(samples_per_epoch), self.interval(samples_per_epoch)
        return epoch == epochs or (epoch >= first and (epoch - first) % interval == 0)
