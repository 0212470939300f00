"""trainer/data/volumes/grid.py: where voxels are, and moving volumes between grids."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from trainer.data.volumes.grid import Grid, inside, resample


def grid(shape: tuple[int, ...] = (6, 8, 10)) -> Grid:
    affine = np.diag([2.0, 1.5, 1.0, 1.0])
    affine[:3, 3] = [5, -6, 7]
    return Grid(shape, affine)


def places(one: Grid) -> torch.Tensor:
    """(3, *shape): the place of each voxel in millimetres."""
    index = np.indices(one.shape).reshape(3, -1)
    found = one.affine[:3, :3] @ index + one.affine[:3, 3:]
    return torch.from_numpy(found.reshape(3, *one.shape).astype(np.float32))


def test_spacing_and_orientation_are_read_from_the_affine() -> None:
    assert grid().spacing_mm == (2.0, 1.5, 1.0)
    assert grid().orientation == "RAS"
    turned = np.diag([-1.0, 1.0, -3.0, 1.0])[:, [2, 0, 1, 3]]
    assert Grid((1, 1, 1), turned).orientation == "ILA"


def test_an_oblique_scan_has_the_nearest_orientation() -> None:
    angle = np.deg2rad(20)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    assert Grid((4, 4, 4), affine).orientation == "RAS"


@pytest.mark.parametrize("letters", ["RAS", "LPS", "ILP", "ASL", "SRA", "PIR"])
def test_turning_moves_no_voxel_and_loses_none(letters: str) -> None:
    there = grid().turned(letters)
    assert there.orientation == letters
    moved = resample(places(grid()), grid(), there, linear=True)
    assert torch.allclose(moved, places(there), atol=1e-4)
    assert torch.equal(resample(moved, there, grid(), linear=True), places(grid()))


@pytest.mark.parametrize("corners", [True, False])
def test_another_spacing_is_torch_s_interpolation(corners: bool) -> None:
    volume = torch.randn(2, 6, 8, 10)
    there = grid().spaced((9, 5, 20), corners)
    expected = F.interpolate(volume[None], (9, 5, 20), mode="trilinear", align_corners=corners)[0]
    found = resample(volume, grid(), there, linear=True)
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_linear_ramp_stays_in_its_place_between_voxels() -> None:
    there = grid().spaced((11, 7, 23), corners=True).turned("SPL")
    moved = resample(places(grid()), grid(), there, linear=True)
    assert torch.allclose(moved, places(there), atol=1e-3)


def test_crops_may_begin_outside_and_say_so() -> None:
    there = grid().cropped((-1, 2, 3), (8, 4, 4))
    assert there.shape == (8, 4, 4)
    within = inside(grid(), there)
    assert within[1:7].all() and not within[0].any() and not within[7].any()
    volume = torch.arange(480.0).view(1, 6, 8, 10)
    assert torch.equal(resample(volume, grid(), there, linear=True)[:, 1:7], volume[:, :, 2:6, 3:7])


def test_labels_keep_their_values() -> None:
    label = torch.randint(0, 5, (1, 6, 8, 10), dtype=torch.uint8)
    there = resample(label, grid(), grid().spaced((13, 17, 9)), linear=False)
    assert there.dtype == torch.uint8 and set(there.unique().tolist()) <= set(range(5))


def test_grids_that_stand_askew_are_refused() -> None:
    angle = np.deg2rad(10)
    turned = grid().affine.copy()
    turned[:2, :2] = turned[:2, :2] @ [
        [np.cos(angle), -np.sin(angle)],
        [np.sin(angle), np.cos(angle)],
    ]
    with pytest.raises(ValueError, match="parallel"):
        resample(torch.zeros(1, 6, 8, 10), grid(), Grid((6, 8, 10), turned), linear=True)


def test_the_same_grid_is_told_from_another() -> None:
    near = Grid(grid().shape, grid().affine + 1e-4)
    assert grid().same_as(near)
    assert not grid().same_as(grid().cropped((0, 0, 1), grid().shape))
    assert not grid().same_as(grid((6, 8, 9)))


@pytest.mark.parametrize("letters", ["ARS", "RSA", "SAR", "LAS", "LPI", "ASR"])
def test_a_cube_with_its_axes_in_another_order_is_another_grid(letters: str) -> None:
    cube = Grid((8, 8, 8), np.eye(4))
    assert not cube.same_as(cube.turned(letters))
