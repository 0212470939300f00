"""Where a crop of a volume begins.

    start = crop_start(rng, shape, patches, locations, components)

A crop is larger than a small volume along some axes: its start is then negative, what lies outside
is padding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.config import Patches

Start = tuple[int, ...]


def crop_start(
    rng: np.random.Generator,
    shape: Sequence[int],
    patches: Patches,
    locations: NDArray[np.int32],
    components: NDArray[np.int32],
) -> Start:
    """The first voxel (d, h, w) of a crop of `patches.size` from a volume of `shape`.

    With probability `patches.foreground` it is laid around foreground: `locations` (n, 4) and
    `components` (m, 7) are those of VolumeFile. A volume without foreground gets a crop anywhere.
    """
    size = patches.size
    if rng.random() < patches.foreground:
        rows = components if patches.around == "component" else locations
        if len(rows):
            number = rng.choice(np.unique(rows[:, 0]))  # every class that is there as often
            row = rng.choice(rows[rows[:, 0] == number])
            if patches.around == "component":
                return _around_box(rng, shape, size, row[1:4], row[4:7])
            return tuple(
                _with_voxel(rng, int(n), p, int(at))
                for n, p, at in zip(shape, size, row[1:], strict=True)
            )
    return tuple(_anywhere(rng, n, p, patches.never_last) for n, p in zip(shape, size, strict=True))


def _anywhere(rng: np.random.Generator, side: int, size: int, never_last: bool) -> int:
    free = side - size
    if free <= 0:
        return int(rng.integers(free, 1))
    return int(rng.integers(0, free if never_last else free + 1))


def _with_voxel(rng: np.random.Generator, side: int, size: int, at: int) -> int:
    if side <= size:
        return int(rng.integers(side - size, 1))
    return int(rng.integers(max(0, at - size + 1), min(side - size, at) + 1))


def _around_box(
    rng: np.random.Generator,
    shape: Sequence[int],
    size: Sequence[int],
    starts: NDArray[np.int32],
    ends: NDArray[np.int32],
) -> Start:
    """A crop with the whole box where it fits, else a window inside the box (MLPerf U-Net3D,
    RandBalancedCrop). Moved, never shrunk, at the border."""
    found = []
    for side, length, a, b in zip(shape, size, starts.tolist(), ends.tolist(), strict=True):
        if side <= length:
            found.append(int(rng.integers(side - length, 1)))
            continue
        room = length - (b - a)
        if room >= 0:
            before = int(rng.integers(0, room)) if room else 0
            low, high = max(0, a - before), min(side, b + room - before)
            # What a border cut off is grown again at the other side.
            low = high - length if high - low < length and low > 0 else low
            found.append(max(0, min(low, side - length)))
        else:
            found.append(a + int(rng.integers(0, -room + 1)))
    return tuple(found)
