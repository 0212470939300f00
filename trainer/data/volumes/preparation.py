"""What is done to a scan before a network sees it, the same in training and in prediction.

    preparation = Preparation(orientation="RAS", spacing_mm=(1, 1, 1), normalization="case")
    there = preparation.prepared_grid(grid)
    image = preparation.image(array, grid)                     # (C, *there.shape) float32
    back = resample(logits, there, grid, linear=True)          # on the scan's own voxels again

In this order: channels, orientation, crop, spacing or shape, clip, normalization, padding. It
stands as JSON in the file of prepared cases and in checkpoints. Torch-free at import.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from trainer.data.volumes.grid import LETTERS, Grid, resample
from trainer.errors import InputError

BACKGROUND = "background"
SHOWN_VALUES = 8
MOST_CLASSES = 256
"""With the background; class numbers are uint8."""

MANY_VALUES = 65_536
ROUNDING = 1e-4
"""Voxels. A size that is so near to the next whole number is that number: spacings in files are
float32."""


def _orientation(letters: str) -> str:
    world = {letter: axis for axis, pair in enumerate(LETTERS) for letter in pair}
    if sorted(world.get(letter, -1) for letter in letters) != [0, 1, 2]:
        raise ValueError(f"'{letters}'; accepted: one of L R, of P A and of I S, like RAS")
    return letters


Millimetres = Annotated[float, Field(gt=0)]
Voxels = Annotated[int, Field(ge=1)]
Removed = Annotated[int, Field(ge=0)]
Deviation = Annotated[float, Field(gt=0)]
Three = tuple[Voxels, Voxels, Voxels]
Ends = tuple[Removed, Removed]


class Preparation(BaseModel):
    """The steps from a scan to what a network sees. Axes are those after `orientation`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    channels: tuple[Removed, ...] | None = None
    """Which channels of the scan, by index, in this order; None: all."""
    orientation: Annotated[str, AfterValidator(_orientation)] | None = None
    """Towards where the three axes run, like RAS; None: as they come."""
    crop: tuple[Ends, Ends, Ends] | None = None
    """Voxels that are taken away before and after, along each axis."""
    spacing_mm: tuple[Millimetres, Millimetres, Millimetres] | None = None
    shape: Three | None = None
    """The size that every scan gets, instead of a spacing."""
    corners: bool = False
    """As MLPerf's U-Net3D: the size is floor(spacing / target * size), and the centres of the
    outermost voxels stay in place. Else the size is rounded, and the outermost faces stay."""
    clip: tuple[float, float] | None = None
    normalization: Literal["none", "constant", "case", "brain"] = "none"
    """constant: (x - mean) / std with given numbers; case: with those of each scan and channel;
    brain: with those of each scan over all its channels (Intel's brain slices)."""
    mean: tuple[float, ...] = ()
    std: tuple[Deviation, ...] = ()
    """For `constant`: of each channel, or one for all."""
    pad_to: Three | None = None
    """The least size; what is missing is added on both sides (floor(d / 2) before) with the
    outermost values."""
    labels: dict[str, tuple[int, ...]] = {}
    """Values of the source by the name of the class, in the order of the classes. `background`
    lists the values that count as background, 0 where it is left out. A later class may be a part
    of an earlier one, and wins there: whole tumour 1, 2, 3, then core 2, 3."""

    @model_validator(mode="after")
    def _fits_together(self) -> Preparation:
        if self.shape and self.spacing_mm:
            raise ValueError("shape and spacing_mm stand together; accepted: one of them")
        if self.clip and self.clip[0] >= self.clip[1]:
            raise ValueError(f"clip is {self.clip}; accepted: the lower value first")
        if (self.normalization == "constant") != bool(self.mean) or len(self.mean) != len(self.std):
            raise ValueError("mean and std belong to normalization 'constant', both of one length")
        self._check_labels()
        return self

    def _check_labels(self) -> None:
        groups = [(BACKGROUND, self.background), *self._groups()]
        if len(groups) > MOST_CLASSES:
            raise ValueError(f"{len(groups)} classes; accepted: at most {MOST_CLASSES}")
        for number, (name, values) in enumerate(groups):
            if not values:
                raise ValueError(f"the class '{name}' has no values")
            for earlier, others in groups[:number]:
                both = set(values) & set(others)
                if both and (earlier == BACKGROUND or not set(values) < set(others)):
                    raise ValueError(
                        f"'{earlier}' and '{name}' share the values {sorted(both)}; accepted: "
                        "classes apart, or a later one that is a part of an earlier one"
                    )

    def _groups(self) -> list[tuple[str, tuple[int, ...]]]:
        return [(name, values) for name, values in self.labels.items() if name != BACKGROUND]

    @property
    def background(self) -> tuple[int, ...]:
        """The values of the source that count as background."""
        return self.labels.get(BACKGROUND, (0,))

    @property
    def classes(self) -> list[str]:
        """Names by class number, the background first."""
        return [BACKGROUND, *(name for name, _ in self._groups())]

    def _steps(self, grid: Grid) -> tuple[Grid, Grid, Grid]:
        """The grid after turning and cropping, after resampling, and after padding."""
        cut = grid.turned(self.orientation) if self.orientation else grid
        if self.crop:
            before = [ends[0] for ends in self.crop]
            left = [n - sum(ends) for n, ends in zip(cut.shape, self.crop, strict=True)]
            if min(left) < 1:
                found = f"a size of {_told(cut.shape)} is cropped by {self.crop}"
                raise InputError("crop", found, "a voxel that is left along each axis")
            cut = cut.cropped(before, left)
        spaced = cut
        if self.shape:
            spaced = cut.spaced(self.shape, self.corners)
        elif self.spacing_mm:
            wanted = np.asarray(cut.shape) * np.asarray(cut.spacing_mm) / self.spacing_mm
            rounded = np.floor(wanted + ROUNDING) if self.corners else np.floor(wanted + 0.5)
            spaced = cut.spaced([max(1, int(n)) for n in rounded], self.corners)
        if not self.pad_to:
            return cut, spaced, spaced
        size = [max(n, least) for n, least in zip(spaced.shape, self.pad_to, strict=True)]
        start = [-((new - n) // 2) for n, new in zip(spaced.shape, size, strict=True)]
        return cut, spaced, spaced.cropped(start, size)

    def prepared_grid(self, grid: Grid) -> Grid:
        """The voxels of a prepared case, for a scan on `grid`. InputError where a crop leaves
        nothing."""
        return self._steps(grid)[-1]

    def image(self, array: NDArray[Any], grid: Grid) -> NDArray[np.float32]:
        """A scan (C, D, H, W) on `grid`, prepared: (C, D, H, W) float32 on `prepared_grid(grid)`.

        Raises InputError where the scan has not the channels.
        """
        if self.channels is not None:
            if max(self.channels, default=0) >= len(array):
                found = f"the scan has {len(array)} channels"
                raise InputError("channels", found, f"those with the index {self.channels}")
            array = array[list(self.channels)]
        cut, spaced, padded = self._steps(grid)
        moved = _moved(np.asarray(array, np.float32), [grid, cut, spaced], linear=True)
        return _moved(self._normalized(moved), [spaced, padded], linear=False)

    def label(self, array: NDArray[Any], grid: Grid, where: str = "the label") -> NDArray[np.uint8]:
        """Values (D, H, W) on `grid` as class numbers (D, H, W) on `prepared_grid(grid)`, by the
        nearest voxel; `where` is for messages."""
        return self.moved_classes(self.classes_of(array, where), grid)

    def moved_classes(self, classes: NDArray[np.uint8], grid: Grid) -> NDArray[np.uint8]:
        """Class numbers (D, H, W) on `grid`, on `prepared_grid(grid)`."""
        cut, spaced, padded = self._steps(grid)
        return _moved(classes[None], [grid, cut, spaced, padded], linear=False)[0]

    def classes_of(self, array: NDArray[Any], where: str = "the label") -> NDArray[np.uint8]:
        """The class number of each voxel, on the scan's own grid.

        Raises InputError for values that belong to no class and are no background.
        """
        known = {*self.background, *(value for _, values in self._groups() for value in values)}
        found, places = _distinct(array)
        if strange := [value for value in found.tolist() if value not in known]:
            shown = ", ".join(f"{value:g}" for value in strange[:SHOWN_VALUES])
            more = f" and {len(strange) - SHOWN_VALUES} more" if strange[SHOWN_VALUES:] else ""
            told = f"has the values {shown}{more}" if strange[1:] else f"has the value {shown}"
            raise InputError(where, told, f"those of the classes: {sorted(known)}")
        table = np.zeros(len(found), np.uint8)
        for number, (_, values) in enumerate(self._groups(), start=1):
            table[np.isin(found, values)] = number
        return table[places]

    def _normalized(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.clip:
            image = np.clip(image, np.float32(self.clip[0]), np.float32(self.clip[1]))
        if self.normalization == "none":
            return image
        if self.normalization == "constant":
            if len(self.mean) not in (1, len(image)):
                found = f"{len(self.mean)} numbers for {len(image)} channels"
                raise InputError("mean and std", found, "one for all, or one a channel")
            mean, std = np.asarray(self.mean, float), np.asarray(self.std, float)
        else:
            axes = (1, 2, 3) if self.normalization == "case" else None
            voxels = image[0].size if self.normalization == "case" else image.size
            mean = np.asarray(np.mean(image, axes, np.float64))
            # So that a scan of one value does not divide by 0 (tf.image.per_image_standardization).
            std = np.maximum(np.std(image, axes, np.float64), 1 / np.sqrt(voxels))
        column = (-1, 1, 1, 1)
        shift, scale = (np.reshape(part, column).astype(np.float32) for part in (mean, std))
        return (image - shift) / scale


def _distinct(array: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The values of an array, and for each voxel which of them it has."""
    if array.dtype.kind in "iu" and array.size and array.min() >= 0 and array.max() < MANY_VALUES:
        # Many times faster than sorting; in the order of memory, which NIfTI has reversed.
        found = np.flatnonzero(np.bincount(array.ravel(order="K")))
        table = np.zeros(found[-1] + 1, np.uint16)
        table[found] = np.arange(len(found))
        return found, table[array]
    found = np.unique(array)
    return found, np.searchsorted(found, array)


def _told(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _moved(volume: NDArray[Any], grids: list[Grid], linear: bool) -> NDArray[Any]:
    """(C, D, H, W) from the first grid to the next and so on; the last step is left out where it
    changes nothing."""
    import torch

    moved = torch.from_numpy(np.ascontiguousarray(volume))
    for source, target in pairwise(grids):
        if source is not target:
            moved = resample(moved, source, target, linear)
    return moved.numpy()
