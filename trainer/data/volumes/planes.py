"""Three planes of a volume side by side, as people look at scans. Torch-free.

    picture = three_planes(image, classes, at, spacing_mm)        # (h, w, 3) uint8

The planes lie across the three axes of the array, through the voxel `at`, the later of the other
two axes upwards (of an array in RAS: head and face up); voxels are drawn as large as they are in
millimetres.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.overlay import colour_of

GAP = 4
"""Pixels between two planes."""

LONGEST = 384
"""Pixels of the longest side of a plane, at the most."""

SHOWN = (0.5, 99.5)
"""Percentiles of a volume that are drawn black and white."""


def grey(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Values (D, H, W) as 0 to 255, between the percentiles 0.5 and 99.5 of all."""
    finite = image[np.isfinite(image)]
    low, high = np.percentile(finite, SHOWN) if finite.size else (0.0, 1.0)
    scaled = (np.nan_to_num(image, nan=low) - low) / max(float(high - low), 1e-12)
    return np.asarray(scaled.clip(0, 1) * 255, np.uint8)


def middle(classes: NDArray[np.uint8] | None, shape: Sequence[int]) -> tuple[int, int, int]:
    """The voxel to look at: the plane across each axis that has the most foreground, else the
    middle of the volume."""
    if classes is None or not classes.any():
        a, b, c = (side // 2 for side in shape)
        return a, b, c
    found = [
        int((classes > 0).sum(axis=tuple(n for n in range(3) if n != axis)).argmax())
        for axis in range(3)
    ]
    return found[0], found[1], found[2]


def three_planes(
    image: NDArray[np.uint8],
    classes: NDArray[np.uint8] | None,
    at: Sequence[int],
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    outlines: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """The planes across axis 0, 1 and 2 through voxel `at`; an index beyond the end is the last.

    `image` (D, H, W) is grey, `classes` are laid over it, of `outlines` (the truth) the borders.
    """
    scale = LONGEST / max(s * n for s, n in zip(spacing_mm, image.shape, strict=True))
    panels = []
    for axis in range(3):
        index = min(int(at[axis]), image.shape[axis] - 1)
        across = [n for n in range(3) if n != axis]
        size = [max(1, round(image.shape[n] * spacing_mm[n] * scale)) for n in across]
        rows, columns = (
            np.minimum((np.arange(own) * image.shape[n] / own).astype(int), image.shape[n] - 1)
            for own, n in zip(size, across, strict=True)
        )
        plane = np.ix_(rows, columns)
        panel = image.take(index, axis)[plane][..., None].repeat(3, axis=2).astype(np.float32)
        if classes is not None:
            _laid_over(panel, classes.take(index, axis)[plane], share=0.45)
        if outlines is not None:
            truth = outlines.take(index, axis)[plane]
            _laid_over(panel, np.where(_border(truth), truth, 0), share=1.0)
        panels.append(panel.transpose(1, 0, 2)[::-1])
    high = max(panel.shape[0] for panel in panels)
    wide = sum(panel.shape[1] for panel in panels) + 2 * GAP
    picture = np.zeros((high, wide, 3), np.uint8)
    left = 0
    for one in panels:
        top = (high - one.shape[0]) // 2
        picture[top : top + one.shape[0], left : left + one.shape[1]] = one.astype(np.uint8)
        left += one.shape[1] + GAP
    return picture


def _laid_over(panel: NDArray[np.float32], classes: NDArray[np.uint8], share: float) -> None:
    for number in np.unique(classes[classes > 0]):
        where = classes == number
        panel[where] = (1 - share) * panel[where] + share * colour_of(int(number))


def _border(classes: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Pixels whose neighbour is of another class."""
    border = np.zeros(classes.shape, bool)
    for axis in range(2):
        changes = np.diff(classes, axis=axis) != 0
        low = [slice(None)] * 2
        high = [slice(None)] * 2
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        border[tuple(low)] |= changes
        border[tuple(high)] |= changes
    return border & (classes > 0)
