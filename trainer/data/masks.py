"""What the values of a set of masks mean. Decided once over the whole set, never file by file.

Two values are background and foreground. Fringes (the values that JPEG or resizing leaves at
edges) are cut at half of the range. More values are several classes: a labels file has to name
them. Torch-free.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict

from trainer.data.images import open_image, read_mask
from trainer.data.labels import MaskClass, class_indices
from trainer.errors import InputError

NEAR_EXTREME = 0.1
"""Values within this share of the range count as its lower or upper end."""

FEW_VALUES = 32
"""So many distinct values or fewer are labels; more are a continuum, as fringes are."""

PEAK = 0.005
"""A value of a continuum that covers more than this share of all pixels is a class of its own."""

COLOUR_PEAK = 0.05
"""A colour that covers more than this share of the coloured pixels is a class of its own."""


class Masks(BaseModel):
    """What the masks of a set mean: two values, or the classes of a labels file.

    Without `classes`, foreground is every value above `threshold`. `values` were found in the
    masks, the largest share first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    threshold: float | None = None
    values: list[int] = []
    classes: list[MaskClass] = []
    numbers: bool = False
    """Whether a network has an output for each of two classes, too, as published ones may have."""

    ignored: int | None = None
    """A value that is no class: it does not count, neither in the loss nor in the scores."""

    @property
    def names(self) -> list[str]:
        """Of the classes, the background first."""
        return [one.name for one in self.classes] or ["background", "foreground"]

    @property
    def outputs(self) -> int:
        """Channels of a network for these masks: 1 for foreground alone, else one a class."""
        return 1 if len(self.names) == 2 and not self.numbers else len(self.names)


def read_masks(
    files: Sequence[Path], meaning: Masks | None, size: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """The truth (H, W) of an image from its mask files, at `size` (width, height) or their own.

    Two classes: 0 and 255. Several: the class index. Without a meaning: the brightness. Of several
    files, the foreground of each counts; where two overlap, the later file.
    """
    united = _one_mask(files[0], meaning, size)
    for file in files[1:]:
        more = _one_mask(file, meaning, size)
        if more.shape != united.shape:
            sizes = [f"{a.shape[1]}x{a.shape[0]}" for a in (more, united)]
            found = f"is {sizes[0]} pixels, {files[0].name} is {sizes[1]}"
            raise InputError(str(file), found, "masks of one size for one image")
        united = np.where(more > 0, more, united) if meaning else np.maximum(more, united)
    return united


def _one_mask(file: Path, meaning: Masks | None, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    if meaning is None:
        return read_mask(file, size)
    if not meaning.classes:
        assert meaning.threshold is not None
        return binary(read_mask(file, size), meaning.threshold)
    indices = class_indices(open_image(file), meaning.classes, str(file), meaning.ignored)
    if size and size != (indices.shape[1], indices.shape[0]):
        indices = np.asarray(Image.fromarray(indices).resize(size, Image.Resampling.NEAREST))
    return binary(indices, 0.5) if meaning.outputs == 1 else indices


@dataclass
class MaskValues:
    """Counts of the values of all masks of a set."""

    histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))
    colours: Counter[int] = field(default_factory=Counter)

    def add(self, mask: NDArray[np.uint8], colour: NDArray[np.uint8] | None = None) -> None:
        """Counts one mask (H, W) and, if it has colours, its pixels (H, W, 3)."""
        self.histogram += np.bincount(mask.ravel(), minlength=256)
        if colour is None:
            return
        spread = colour.max(axis=2).astype(int) - colour.min(axis=2)
        coarse = (colour[spread > 64] >> 5).astype(int)
        codes, counts = np.unique(coarse @ np.array([64, 8, 1]), return_counts=True)
        self.colours.update(dict(zip(codes.tolist(), counts.tolist(), strict=True)))

    def shares(self) -> list[tuple[int, float]]:
        """The values found, each with its share of all pixels, largest first."""
        total = max(1, int(self.histogram.sum()))
        found = [(int(v), float(self.histogram[v]) / total) for v in np.nonzero(self.histogram)[0]]
        return sorted(found, key=lambda item: -item[1])

    def meaning(self, where: str) -> Masks:
        """Background and foreground; raises InputError, named by `where`, for anything else."""
        shares = self.shares()
        values = [value for value, _ in shares]
        low, high = min(values), max(values)
        if high == low:
            if high == 0:
                raise InputError(where, "all masks are empty", "some masks with foreground")
            raise InputError(
                where,
                f"all pixels of all masks are equally bright ({high})",
                "a background and a foreground that differ in brightness",
                "paint the background black" if self.colours else "",
            )
        classes = self._classes(shares, low, high)
        if len(classes) > 2:
            text = ", ".join(f"{value} ({share:.2%})" for value, share in classes[:12])
            raise InputError(
                where,
                f"the masks have {len(classes)} values: {text}",
                "two values, background and foreground, or classes that --labels FILE names",
                f"write a labels file, like {self._example([v for v, _ in classes])}",
            )
        self._one_colour(where)
        return Masks(threshold=(low + high) / 2, values=values[:8])

    @staticmethod
    def _classes(shares: list[tuple[int, float]], low: int, high: int) -> list[tuple[int, float]]:
        margin = NEAR_EXTREME * (high - low)
        middle = [(v, s) for v, s in shares if low + margin < v < high - margin]
        if len(shares) > FEW_VALUES:
            middle = [(v, s) for v, s in middle if s > PEAK]
        near = [(v, s) for v, s in shares if low < v <= low + margin]
        if len(shares) == 3 and near and near[0][1] > PEAK:
            middle += near  # 0, 1 and 255: masks of two kinds in one set, not a fringe
        ends = [(v, s) for v, s in shares if v in (low, high)]
        return sorted(ends + middle)

    @staticmethod
    def _example(values: list[int]) -> str:
        named = [f'"class {number}": {value}' for number, value in enumerate(values[1:8], start=1)]
        return "{" + ", ".join([f'"background": {values[0]}', *named]) + "}"

    def several_colours(self) -> bool:
        """Whether two colours or more are classes of their own."""
        return len(self._peaks()) > 1

    def _peaks(self) -> list[tuple[int, int]]:
        total = sum(self.colours.values())
        return [(c, n) for c, n in self.colours.most_common() if n > COLOUR_PEAK * total]

    def _one_colour(self, where: str) -> None:
        total, peaks = sum(self.colours.values()), self._peaks()
        if len(peaks) > 1:
            names = [
                f"about ({(c >> 6) * 36}, {(c >> 3 & 7) * 36}, {(c & 7) * 36}): {n / total:.1%}"
                for c, n in peaks[:8]
            ]
            raise InputError(
                where,
                f"the masks have {len(peaks)} colours beside the background: {'; '.join(names)}",
                "one colour, or grey, or classes that --labels FILE names",
                'write a labels file, like {"background": "#000000", "liver": "#ff0000"}',
            )


def binary(mask: NDArray[np.uint8], threshold: float) -> NDArray[np.uint8]:
    """Foreground 255, background 0."""
    return np.where(mask > threshold, np.uint8(255), np.uint8(0))
