"""Slicers: a volume cut into blocks, and put together again. Geometry only; torch-free.

On each axis blocks of `sizes` begin every `strides` voxels. A block that reaches beyond the volume
is filled up with zeros, or left out with discard_remainders: then there are
floor((length - size) / stride) + 1. Around each block come zeros, by `padding` on both ends or up
to `padded_sizes`, the odd one at the end. Axes that are then one voxel long are dropped, and the
two axes of a flat block may be swapped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from trainer.config import Slicer
from trainer.errors import InputError

MOST_VOXELS = 2**32
"""In a block; more is a slip of the keys."""


def slicer_names(slicers: Sequence[Slicer]) -> list[str]:
    """The names of all slicers; raises InputError for one that names no dataset or stands twice."""
    names = [one.name or f"slices_{number}" for number, one in enumerate(slicers, start=1)]
    for place, name in enumerate(names):
        if "/" in name or name == "." or not name.isprintable():
            where = f"data.slicers[{place}].name"
            raise InputError(where, f"'{name}' names no dataset", "a name without a slash")
        if name in names[:place]:
            raise InputError(
                f"data.slicers[{place}].name", f"'{name}' stands twice", "a name for each"
            )
    return names


@dataclass(frozen=True)
class Grid:
    """The blocks of one slicer in a volume of `shape` (without channels)."""

    slicer: Slicer
    shape: tuple[int, ...]

    @property
    def strides(self) -> tuple[int, ...]:
        """From block to block, in voxels."""
        return tuple(self.slicer.strides or self.slicer.sizes)

    @property
    def padding(self) -> list[tuple[int, int]]:
        """Zeros before and behind a block, on each axis."""
        if self.slicer.padding:
            return [(one, one) for one in self.slicer.padding]
        sizes = self.slicer.sizes
        more = [p - s for p, s in zip(self.slicer.padded_sizes or sizes, sizes, strict=True)]
        return [(one // 2, one - one // 2) for one in more]

    @property
    def padded(self) -> tuple[int, ...]:
        """The lengths of a block with its padding."""
        ends = zip(self.slicer.sizes, self.padding, strict=True)
        return tuple(size + before + behind for size, (before, behind) in ends)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """How many blocks there are along each axis."""
        axes = zip(self.shape, self.slicer.sizes, self.strides, strict=True)
        if self.slicer.discard_remainders:
            return tuple(max(0, (length - size) // stride + 1) for length, size, stride in axes)
        # With strides above sizes, what would be the last block may begin behind the volume.
        return tuple(
            min(max(0, math.ceil((length - size) / stride)) + 1, math.ceil(length / stride))
            for length, size, stride in axes
        )

    def __len__(self) -> int:
        return math.prod(self.counts)

    @property
    def kept(self) -> list[int]:
        """The axes that a block has; the others are one voxel long."""
        return [axis for axis, length in enumerate(self.padded) if length > 1]

    @property
    def block_shape(self) -> tuple[int, ...]:
        """The shape of a block as the network gets it, without channels."""
        shape = [self.padded[axis] for axis in self.kept]
        return tuple(reversed(shape) if self.slicer.transpose else shape)

    @property
    def covered(self) -> tuple[int, ...]:
        """The lengths of what is put together: up to the last block, at most the volume."""
        axes = zip(self.counts, self.strides, self.slicer.sizes, self.shape, strict=True)
        return tuple(min((n - 1) * stride + size, length) for n, stride, size, length in axes)

    def region(self, number: int) -> tuple[slice, ...]:
        """Where block `number` (in C order) lies in the volume, as far as it does."""
        starts = np.unravel_index(number, self.counts)
        axes = zip(starts, self.strides, self.slicer.sizes, self.shape, strict=True)
        return tuple(
            slice(int(n) * stride, min(int(n) * stride + size, length))
            for n, stride, size, length in axes
        )

    def zeros(self, number: int) -> list[tuple[int, int]]:
        """Zeros that block `number` gets before and behind, on each axis, with its remainder."""
        axes = zip(self.region(number), self.slicer.sizes, self.padding, strict=True)
        return [(b, e + size - (one.stop - one.start)) for one, size, (b, e) in axes]

    def overlaps(self, axis: int) -> NDArray[np.float32]:
        """In how many blocks each voxel of an axis lies; of a voxel, the product over the axes."""
        stride, size = self.strides[axis], self.slicer.sizes[axis]
        counts = np.zeros(self.covered[axis], np.float32)
        for number in range(self.counts[axis]):
            counts[number * stride : number * stride + size] += 1
        return counts

    def restored(self, block: NDArray[np.float32], number: int) -> NDArray[np.float32]:
        """A block (C, …) as the network gives it -> what belongs to its `region`, (C, …).

        Swapped axes are swapped back, dropped ones are there again, padding is cut off.
        """
        if self.slicer.transpose:
            block = block.swapaxes(-1, -2)
        block = block.reshape(block.shape[0], *self.padded)
        inner = (
            slice(before, before + one.stop - one.start)
            for one, (before, _) in zip(self.region(number), self.padding, strict=True)
        )
        return block[(slice(None), *inner)]


def checked_grid(slicer: Slicer, shape: tuple[int, ...], where: str) -> Grid:
    """The grid of a slicer in a volume; raises InputError where no block comes out."""
    grid = Grid(slicer, shape)
    told = " x ".join(map(str, slicer.sizes))
    if not grid.kept:
        raise InputError("data.slicers", f"blocks of {told} voxels", "an axis longer than 1")
    if slicer.transpose and len(grid.kept) != 2:
        raise InputError(
            "data.slicers", "transpose of blocks that are not flat", "two axes above 1"
        )
    if math.prod(grid.padded) > MOST_VOXELS:
        found = f"blocks of {' x '.join(map(str, grid.padded))} voxels"
        raise InputError("data.slicers", found, f"at most {MOST_VOXELS} voxels in a block")
    if len(grid) == 0:
        whole = " x ".join(map(str, shape))
        found = f"is {whole} voxels, no block of {told} lies within it"
        raise InputError(where, found, "smaller sizes, or discard_remainders false")
    return grid


def slicing_lines(grid: Grid, name: str, dataset: str, path: str, kind: str) -> list[str]:
    """What the log says of the slicing of one array."""
    pads = "".join(f"({before},{behind})" for before, behind in grid.padding)
    slicer = grid.slicer
    items = {
        "Sizes": list(slicer.sizes),
        "Padding": f"[{pads}]",
        "Padded sizes": list(grid.padded),
        **({"Strides": list(slicer.strides)} if slicer.strides else {}),
        "Remainders": "discarded" if slicer.discard_remainders else "included",
        "Transpose": "true" if slicer.transpose else "false",
        "Num samples": len(grid),
    }
    width = max(map(len, items))
    return [
        f"Slicing dataset '{dataset}' from {kind} file: {path}",
        f"   Full size: {list(grid.shape)}",
        f"   Slicer: {name}",
        *(f"      {key:<{width}}: {value}" for key, value in items.items()),
    ]
