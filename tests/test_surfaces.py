"""trainer/data/volumes/surfaces.py: distances in millimetres."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.data.volumes.surfaces import hd95_mm, surface_dice


def box(start: int, shape: tuple[int, int, int] = (24, 20, 20)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[start : start + 8, 6:14, 6:14] = True
    return mask


def test_a_box_moved_along_an_axis_is_as_far_as_it_moved() -> None:
    assert hd95_mm(box(4), box(4), (1, 1, 1)) == 0
    assert hd95_mm(box(4), box(7), (1, 1, 1)) == pytest.approx(3)
    assert hd95_mm(box(4), box(7), (2.5, 1, 1)) == pytest.approx(7.5)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_it_is_monai_s_distance() -> None:
    import torch
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    rng = np.random.default_rng(0)
    centre = np.indices((30, 26, 22)).transpose(1, 2, 3, 0)
    for _ in range(5):
        balls = [
            ((centre - rng.uniform(9, 14, 3)) ** 2).sum(-1) < rng.uniform(4, 7) ** 2
            for _ in range(2)
        ]
        truth, found = balls
        spacing = tuple(rng.uniform(0.5, 3, 3).tolist())
        tensors = [torch.from_numpy(ball[None, None]) for ball in (found, truth)]
        shared = {"include_background": True, "spacing": spacing}
        expected = compute_hausdorff_distance(*tensors, percentile=95, **shared)
        assert hd95_mm(truth, found, spacing) == pytest.approx(float(expected), rel=1e-5)
        near = compute_surface_dice(*tensors, class_thresholds=[1.5], **shared)
        assert surface_dice(truth, found, spacing, 1.5) == pytest.approx(float(near), abs=1e-6)


def test_surfaces_within_the_tolerance_count() -> None:
    assert surface_dice(box(4), box(5), (1, 1, 1), 1.0) == 1
    assert surface_dice(box(4), box(5), (1, 1, 1), 0.5) < 1
    assert surface_dice(box(4), box(5), (4, 1, 1), 1.0) < 1


def test_empty_objects() -> None:
    nothing = np.zeros((24, 20, 20), bool)
    assert hd95_mm(nothing, box(4), (1, 1, 1)) is None
    assert hd95_mm(box(4), nothing, (1, 1, 1)) is None
    assert surface_dice(nothing, nothing, (1, 1, 1), 1) == 1
    assert surface_dice(box(4), nothing, (1, 1, 1), 1) == 0


def test_an_object_that_fills_the_volume_has_its_border_as_surface() -> None:
    whole = np.ones((5, 5, 5), bool)
    assert hd95_mm(whole, whole, (1, 1, 1)) == 0
