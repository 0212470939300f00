"""Where the voxels of a volume lie, and moving a volume from one such grid to another.

    grid = Grid(shape=(155, 240, 240), affine=affine)
    grid.spacing_mm, grid.orientation
    there = resample(volume, grid, other, linear=True)         # (C, *other.shape)

Axes are those of the array, first axis first; `affine` (4, 4) leads from voxel indices to
millimetres, rightwards, forwards and upwards (RAS+, as in NIfTI).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))
"""The ends of each axis of the world, the low one first."""

OBLIQUE = 0.02
"""Voxels. Grids whose axes run apart by more than this are not moved along their axes."""


@dataclass(frozen=True, eq=False)
class Grid:
    """The voxels of a volume: how many along each axis, and where they are."""

    shape: tuple[int, ...]
    affine: NDArray[np.float64]

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """From voxel to voxel along each axis."""
        return tuple(float(length) for length in np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def axes(self) -> tuple[tuple[int, int], ...]:
        """For each axis of the array the axis of the world (0, 1, 2) that it is nearest to, and
        its direction (1 or -1). Each axis of the world stands once."""
        cosines = self.affine[:3, :3] / np.maximum(self.spacing_mm, 1e-12)
        left, found = set(range(3)), [(0, 0)] * 3
        for axis in np.argsort(-np.abs(cosines).max(axis=0), kind="stable"):
            world = max(left, key=lambda one: abs(cosines[one, axis]))
            left.remove(world)
            found[int(axis)] = (world, 1 if cosines[world, axis] >= 0 else -1)
        return tuple(found)

    @property
    def orientation(self) -> str:
        """Towards where each axis of the array runs, as letters, like RAS."""
        return "".join(LETTERS[world][int(sign > 0)] for world, sign in self.axes)

    def turned(self, orientation: str) -> Grid:
        """The same voxels with their axes in the order and direction that `orientation` names."""
        own = {world: (axis, sign) for axis, (world, sign) in enumerate(self.axes)}
        columns, origin, shape = [], self.affine[:3, 3].copy(), []
        for letter in orientation:
            world = next(i for i, pair in enumerate(LETTERS) if letter in pair)
            axis, sign = own[world]
            wanted = 1 if letter == LETTERS[world][1] else -1
            column = self.affine[:3, axis] * sign * wanted
            if sign != wanted:
                origin = origin + self.affine[:3, axis] * (self.shape[axis] - 1)
            columns.append(column)
            shape.append(self.shape[axis])
        return Grid(tuple(shape), _affine(columns, origin))

    def cropped(self, start: Sequence[int], shape: Sequence[int]) -> Grid:
        """The grid of `shape` voxels that begins at the voxel `start`, which may lie outside."""
        affine = self.affine.copy()
        affine[:3, 3] = self.affine[:3, :3] @ np.asarray(start, float) + self.affine[:3, 3]
        return Grid(tuple(int(n) for n in shape), affine)

    def spaced(self, shape: Sequence[int], corners: bool = False) -> Grid:
        """The same field cut into `shape` voxels.

        With `corners` the centres of the outermost voxels stay where they are (align_corners of
        torch), else the outermost faces do.
        """
        own = np.asarray(self.shape, float)
        new = np.asarray(shape, float)
        if corners:
            step, shift = (own - 1) / np.maximum(new - 1, 1), np.zeros(3)
        else:
            step = own / new
            shift = (step - 1) / 2
        affine = self.affine.copy()
        affine[:3, :3] = self.affine[:3, :3] * step
        affine[:3, 3] = self.affine[:3, :3] @ shift + self.affine[:3, 3]
        return Grid(tuple(int(n) for n in shape), affine)

    def same_as(self, other: Grid) -> bool:
        """Whether both have the same voxels, to a hundredth of a voxel."""
        if self.shape != other.shape:
            return False
        # All corners: the far one alone is the same for axes in another order.
        ends = np.array([(*at, 1) for at in product(*((0, n - 1) for n in self.shape))], float).T
        apart = np.abs((self.affine @ ends - other.affine @ ends)[:3]).max()
        return bool(apart <= 0.01 * min(self.spacing_mm))


def _affine(
    columns: Sequence[NDArray[np.float64]], origin: NDArray[np.float64]
) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = np.stack(columns, axis=1)
    affine[:3, 3] = origin
    return affine


@dataclass(frozen=True)
class _Line:
    """Along one axis of the target: positions on an axis of the source, in voxels."""

    axis: int
    step: float
    start: float

    def positions(self, count: int) -> NDArray[np.float64]:
        return self.start + self.step * np.arange(count, dtype=np.float64)


def _lines(source: Grid, target: Grid) -> list[_Line]:
    """The source axis of each target axis; ValueError where the grids stand askew."""
    to_source = np.linalg.inv(source.affine) @ target.affine
    lines, extent = [], np.asarray(target.shape, float) - 1
    taken: set[int] = set()
    for axis in range(3):
        column = to_source[:3, axis]
        own = max(set(range(3)) - taken, key=lambda one: abs(column[one]))
        others = np.delete(np.abs(column), own)
        if (others * max(extent[axis], 1)).max() > OBLIQUE:
            raise ValueError("the axes of these grids are not parallel")
        taken.add(own)
        lines.append(_Line(own, float(column[own]), float(to_source[own, 3])))
    return lines


def inside(source: Grid, target: Grid) -> NDArray[np.bool_]:
    """(target.shape): which voxels of `target` have their centre in the field of `source`."""
    found = np.ones(target.shape, bool)
    for axis, line in enumerate(_lines(source, target)):
        x = line.positions(target.shape[axis])
        within = (x >= -0.5 - 1e-6) & (x <= source.shape[line.axis] - 0.5 + 1e-6)
        found &= within.reshape([-1 if one == axis else 1 for one in range(3)])
    return found


def resample(volume: Tensor, source: Grid, target: Grid, linear: bool) -> Tensor:
    """A volume (C, *source.shape) on another grid: (C, *target.shape), on the same device.

    Trilinear or nearest; beyond the outermost voxels their value goes on (`inside` tells where
    that is). Along one axis after the other, which needs little memory. Grids have parallel axes in
    any order and direction; ValueError for others.
    """
    import torch

    lines = _lines(source, target)
    moved = volume.permute(0, *(line.axis + 1 for line in lines))
    for axis, line in enumerate(lines, start=1):
        size = moved.shape[axis]
        x = line.positions(target.shape[axis - 1])
        near = np.rint(x)
        if np.abs(x - near).max() < 1e-4 or not linear:
            # Half-way positions go up, by a rule of ours: rint would take the even one.
            near = np.where(np.abs(x - near) < 1e-4, near, np.floor(x + 0.5))
            index = np.clip(near, 0, size - 1).astype(np.int64)
            steps = np.diff(index)
            if (steps == 1).all():
                moved = moved.narrow(axis, int(index[0]), len(index))
            elif (steps == -1).all():
                moved = moved.narrow(axis, int(index[-1]), len(index)).flip(axis)
            else:
                moved = moved.index_select(axis, torch.from_numpy(index).to(volume.device))
            continue
        x = np.clip(x, 0, size - 1)
        low = np.minimum(np.floor(x), max(0, size - 2)).astype(np.int64)
        high = np.minimum(low + 1, size - 1)
        share = torch.from_numpy((x - low).astype(np.float32)).to(volume.device)
        share = share.view([-1 if one == axis else 1 for one in range(moved.dim())])
        a = moved.index_select(axis, torch.from_numpy(low).to(volume.device))
        b = moved.index_select(axis, torch.from_numpy(high).to(volume.device))
        moved = torch.lerp(a.float(), b.float(), share)
    return moved.contiguous()
