"""What the values of a set of masks mean. Decided once over the whole set, never file by file.

Two values are background and foreground. Fringes (the values that JPEG or resizing leaves at
edges) are cut at half of the range. More values are several classes, which is another task.
Torch-free.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trainer.errors import InputError

NEAR_EXTREME = 0.1
"""Values within this share of the range count as its lower or upper end."""

FEW_VALUES = 32
"""So many distinct values or fewer are labels; more are a continuum, as fringes are."""

PEAK = 0.005
"""A value of a continuum that covers more than this share of all pixels is a class of its own."""

COLOUR_PEAK = 0.05
"""A colour that covers more than this share of the coloured pixels is a class of its own."""


@dataclass(frozen=True)
class MaskMeaning:
    """Foreground is every value above `threshold`; `values` were found, largest share first."""

    threshold: float
    values: tuple[int, ...]


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

    def meaning(self, where: str) -> MaskMeaning:
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
                f"the masks have {len(classes)} values, the network 2 classes: {text}",
                "two values, background and foreground",
                "merge the classes into one, or keep one of them and set the others to 0",
            )
        self._one_colour(where)
        return MaskMeaning((low + high) / 2, tuple(values[:8]))

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

    def _one_colour(self, where: str) -> None:
        total = sum(self.colours.values())
        peaks = [(c, n) for c, n in self.colours.most_common() if n > COLOUR_PEAK * total]
        if len(peaks) > 1:
            names = [
                f"about ({(c >> 6) * 36}, {(c >> 3 & 7) * 36}, {(c & 7) * 36}): {n / total:.1%}"
                for c, n in peaks[:8]
            ]
            raise InputError(
                where,
                f"the masks have {len(peaks)} colours beside the background: {'; '.join(names)}",
                "one colour, or grey",
                "paint the classes in one colour, or keep one of them",
            )


def binary(mask: NDArray[np.uint8], threshold: float) -> NDArray[np.uint8]:
    """Foreground 255, background 0."""
    return np.where(mask > threshold, np.uint8(255), np.uint8(0))
