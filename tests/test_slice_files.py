"""trainer/data/slice_files.py: what the files of slices hold, and which rows are of whom."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.slices import EACH, write_slices
from trainer.config import Slices
from trainer.data.slice_files import Slice, list_slices, scans_of
from trainer.errors import InputError


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slices(tmp_path_factory.mktemp("slices"), train=3, test=1)


def rows(folder: Path, **keys: Any) -> list[Slice]:
    slices = Slices.model_validate(keys)
    return list_slices(str(folder / "imgs_test.npy"), str(folder / "msks_test.npy"), slices)


def test_names_of_a_file_beside_win(tmp_path: Path) -> None:
    write_slices(tmp_path, train=1, test=1, record=False)
    names = {"channels": ["a", "b", "c", "d"], "masks": ["none", "x", "y", "z"]}
    (tmp_path / "slices.json").write_text(json.dumps(names))
    assert rows(tmp_path, channels=["c"], target=["y"])[0].files.channels == (2,)
    with pytest.raises(InputError, match="no 'flair'"):
        rows(tmp_path, channels=["flair"])


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"channels": ["flare"]}, "no 'flare'; did you mean 'flair'"),
        ({"channels": [4]}, "0 to 3"),
        ({"target": ["whole"]}, "no 'whole'"),
    ],
)
def test_what_is_no_channel_is_told(arrays: Path, keys: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        rows(arrays, **keys)


def test_a_name_of_more_channels_than_there_are_is_no_channel(tmp_path: Path) -> None:
    np.save(tmp_path / "imgs_test.npy", np.zeros((4, 8, 8, 1), np.float32))
    with pytest.raises(InputError, match="no 'flair'"):
        list_slices(str(tmp_path / "imgs_test.npy"), None, Slices(channels=["flair"]))


def test_other_files_are_told(arrays: Path, tmp_path: Path) -> None:
    slices = Slices()
    with pytest.raises(InputError, match="no such file"):
        list_slices(str(tmp_path / "no.npy"), None, slices)
    for array, told in (
        (np.zeros((4, 4)), r"\(4, 4\)"),
        (np.zeros((0, 8, 8, 4)), "holds nothing"),
    ):
        np.save(tmp_path / "other.npy", array)
        with pytest.raises(InputError, match=told):
            list_slices(str(tmp_path / "other.npy"), None, slices)
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(InputError, match="cannot be read"):
        list_slices(str(tmp_path / "objects.npy"), None, slices)
    with pytest.raises(InputError, match="slices, height, width"):
        list_slices(str(arrays / "imgs_train.npy"), str(arrays / "msks_test.npy"), slices)


def test_rows_of_scans_follow_each_other(arrays: Path) -> None:
    found = scans_of(arrays / "imgs_train.npy", 3 * EACH)
    assert found is not None
    assert [(one.first, one.last) for one in found] == [(0, 12), (12, 24), (24, 36)]
    assert [one.patient for one in found] == ["Brats17_00", "Brats17_01", "Brats17_02"]
    other = scans_of(arrays / "imgs_test.npy", EACH)
    assert other is not None and other[0].scan == "Brats17_03_1"


def test_nobody_knows_the_scans_without_the_record(arrays: Path, tmp_path: Path) -> None:
    assert scans_of(tmp_path / "imgs_train.npy", 5) is None
    (tmp_path / "slices.json").write_text('{"channels": ["t1"]}')
    assert scans_of(tmp_path / "imgs_train.npy", 5) is None


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"train": [{"scan": "a", "patient": "a", "first_slice": 0, "slices": 4}]}, "tells of 4"),
        ({"train": []}, "tells of 0"),
        ({"test": []}, "does not say"),
        ({"train": [{"scan": "a"}]}, "does not say"),
        ([3], "does not say"),
    ],
)
def test_a_record_of_other_arrays_is_told(tmp_path: Path, parts: Any, told: str) -> None:
    (tmp_path / "slices.json").write_text(json.dumps({"parts": parts}))
    with pytest.raises(InputError, match=told):
        scans_of(tmp_path / "imgs_train.npy", 5)
