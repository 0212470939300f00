"""trainer/data/volumes/crops.py: where crops begin."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.config import Patches
from trainer.data.volumes.crops import crop_start
from trainer.data.volumes.volume_file import components, locations

DRAWS = 4000


def drawn(label: np.ndarray, draws: int = DRAWS, **keys: object) -> np.ndarray:
    patches = Patches.model_validate({"size": [16, 16, 16], **keys})
    rng = np.random.default_rng(0)
    facts = locations(label, 3), components(label, 3)
    return np.array([crop_start(rng, label.shape, patches, *facts) for _ in range(draws)])


def lesion(shape: tuple[int, int, int] = (40, 48, 56)) -> np.ndarray:
    label = np.zeros(shape, np.uint8)
    label[30:33, 2:4, 50:52] = 1
    return label


def share_with(starts: np.ndarray, label: np.ndarray) -> float:
    hit = [label[a : a + 16, b : b + 16, c : c + 16].any() for a, b, c in starts.clip(0)]
    return float(np.mean(hit))


@pytest.mark.parametrize("around", ["voxel", "component"])
def test_the_share_of_crops_with_foreground_is_at_least_what_was_asked(around: str) -> None:
    label = lesion()
    anywhere = share_with(drawn(label, foreground=0.0), label)
    forced = share_with(drawn(label, foreground=0.4, around=around), label)
    assert abs(forced - (0.4 + 0.6 * anywhere)) < 0.03
    assert share_with(drawn(label, 200, foreground=1.0, around=around), label) == 1.0


def test_every_place_is_as_likely_and_the_last_one_can_be_left_out() -> None:
    label = np.zeros((18, 17, 16), np.uint8)
    starts = drawn(label, foreground=0.0)
    counts = np.bincount(starts[:, 0], minlength=3)
    assert np.abs(counts / DRAWS - 1 / 3).max() < 0.03
    assert set(starts[:, 1]) == {0, 1} and set(starts[:, 2]) == {0}
    published = drawn(label, foreground=0.0, never_last=True)
    assert set(published[:, 0]) == {0, 1} and set(published[:, 1]) == {0}


def test_crops_stay_within_the_volume() -> None:
    for around in ("voxel", "component"):
        starts = drawn(lesion(), foreground=0.7, around=around)
        assert (starts >= 0).all()
        assert (starts <= np.array([40, 48, 56]) - 16).all()


def test_a_volume_smaller_than_the_crop_lies_wholly_in_it() -> None:
    label = np.zeros((10, 16, 40), np.uint8)
    label[4:6, 4:6, 4:6] = 1
    for around in ("voxel", "component"):
        starts = drawn(label, foreground=0.5, around=around)
        assert set(starts[:, 0]) == set(range(-6, 1))
        assert set(starts[:, 1]) == {0}


def test_a_crop_around_a_component_has_its_whole_box() -> None:
    """MLPerf: only the two with the largest boxes are chosen, and a box that fits is whole."""
    label = np.zeros((40, 40, 40), np.uint8)
    label[2:12, 2:12, 2:12] = 1
    label[25:33, 25:33, 25:33] = 1
    label[20:22, 5:7, 35:37] = 1  # a third one
    assert len(components(label, 3)) == 2
    starts = drawn(label, 2000, foreground=1.0, around="component")
    first = (starts <= 2).all(axis=1) & (starts + 16 >= 12).all(axis=1)
    second = (starts <= 25).all(axis=1) & (starts + 16 >= 33).all(axis=1)
    assert (first | second).all()
    assert 0.42 < first.mean() < 0.58


def test_a_box_larger_than_the_crop_is_cut_within() -> None:
    label = np.zeros((60, 60, 60), np.uint8)
    label[5:55, 5:55, 5:55] = 2
    starts = drawn(label, 500, foreground=1.0, around="component")
    assert (starts >= 5).all() and (starts + 16 <= 55).all()


def test_classes_are_drawn_as_often_whatever_their_size() -> None:
    label = np.zeros((64, 64, 64), np.uint8)
    label[:20, :20, :20] = 1
    label[60:62, 60:62, 60:62] = 2
    starts = drawn(label, 2000, foreground=1.0)
    assert 0.45 < (starts[:, 0] > 40).mean() < 0.55


def test_a_volume_without_foreground_is_cropped_anywhere() -> None:
    starts = drawn(np.zeros((32, 32, 32), np.uint8), foreground=1.0)
    assert len(np.unique(starts[:, 0])) == 17


def test_a_voxel_may_be_anywhere_in_its_crop() -> None:
    label = np.zeros((60, 60, 60), np.uint8)
    label[30, 1, 59] = 1
    starts = drawn(label, foreground=1.0)
    assert set(starts[:, 0]) == set(range(15, 31))
    assert set(starts[:, 1]) == {0, 1} and set(starts[:, 2]) == {44}
