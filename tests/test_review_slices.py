"""Pictures of slices: which are the worst, what the files beside say, and what cannot be drawn."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from tests.slices import EACH, write_slices
from trainer.review import main
from trainer.review_slices import gather_slices, open_slice_review

ROWS = 2 * EACH
HALF, FALSE = 5, 12


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """The truth itself, but for a slice where 12 of 36 pixels are missed, and 4 false ones."""
    write_slices(tmp_path, train=1, test=2)
    found = np.load(tmp_path / "msks_test.npy").any(axis=3, keepdims=True).astype(np.float32)
    assert found[HALF].any() and not found[FALSE].any()
    a, b = np.argwhere(found[HALF, :, :, 0])[:12].T
    found[HALF, a, b] = 0
    found[FALSE, :2, :2] = 0.9
    np.save(tmp_path / "imgs_test_predictions.npy", found)
    record = {
        "source": str(tmp_path / "imgs_test.npy"),
        "slices": {"channels": [2], "height": 16, "width": 16, "target": [1, 2, 3]},
    }
    (tmp_path / "predict.json").write_text(json.dumps(record))
    return tmp_path / "imgs_test_predictions.npy"


def write_hdf5(path: Path, predictions: Path, rows: range, **more: str) -> None:
    found = np.load(predictions)
    with h5py.File(path, "w") as file:
        for row in rows:
            file[f"{row:06d}"] = found[row].transpose(2, 0, 1)
        folder = predictions.parent
        told = {"inputs": folder / "imgs_test.npy", "targets": folder / "msks_test.npy"}
        file.attrs.update({key: str(value) for key, value in told.items()})
        file.attrs["slices"] = json.dumps({"channels": [2], "target": [1, 2, 3]})
        file.attrs.update(more)


def test_the_worst_slices_come_first_with_scores_by_hand(predictions: Path) -> None:
    review = gather_slices(open_slice_review(predictions), most=3)
    assert review.total == len(review.scores) == ROWS
    assert [one.name for one in review.cases[:2]] == [
        "Brats17_02_1, slice 0",
        "Brats17_01_1, slice 5",
    ]
    assert review.scores[0].false_pixels == 4 and review.scores[0].dice == 0
    assert review.scores[1].dice == pytest.approx(2 * 24 / (2 * 24 + 12))
    assert review.scores[2].dice == 1
    image = np.load(predictions.with_name("imgs_test.npy"))[HALF, :, :, 2]
    order = image.ravel().argsort()
    drawn = review.cases[1].image[..., 0].ravel()[order].astype(int)
    assert (np.diff(drawn) >= 0).all() and drawn[0] == 0 and drawn[-1] == 255


def test_a_page_is_drawn_of_arrays_and_of_hdf5(
    predictions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(predictions), "--images", "4"]) == 0
    assert "4 of 24 slices, worst first" in capsys.readouterr().out
    page = np.asarray(Image.open(predictions.with_suffix(".png")).convert("RGB"))
    assert page.shape[0] > 300 and len(np.unique(page.reshape(-1, 3), axis=0)) > 50
    folder = tmp_path / "output"
    folder.mkdir()
    write_hdf5(folder / "output_1.h5", predictions, range(3, 9))
    assert main([str(folder / "output_1.h5")]) == 0
    assert "all 6 slices, worst first" in capsys.readouterr().out


def test_predictions_of_a_part_take_their_rows_from_the_hdf5_beside(
    predictions: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "output"
    folder.mkdir()
    rows = range(HALF, HALF + 4)
    other = tmp_path / "other_predictions.npy"
    np.save(other, 0 * np.load(predictions))
    for epoch, of in ((9, other), (10, predictions)):  # the array is of the last epoch
        write_hdf5(folder / f"output_{epoch}.h5", of, rows)
    np.save(folder / "msks_test_predictions.npy", np.load(predictions)[rows.start : rows.stop])
    review = gather_slices(open_slice_review(folder / "msks_test_predictions.npy"), most=1)
    assert review.total == 4 and review.cases[0].name == "Brats17_01_1, slice 5"
    assert review.scores[0].dice == pytest.approx(2 * 24 / (2 * 24 + 12))


def test_the_channel_and_the_target_of_the_model_are_drawn(predictions: Path) -> None:
    record = predictions.with_name("predict.json")
    told = json.loads(record.read_text())
    told["slices"] |= {"channels": [0], "target": [3]}
    record.write_text(json.dumps(told))
    source = open_slice_review(predictions)
    assert source.arrays.files.channels == (0,) and source.arrays.files.planes == (3,)
    truth = np.load(predictions.with_name("msks_test.npy"))
    for row in range(ROWS):
        drawn = source.arrays.truth(row)
        assert drawn is not None and np.array_equal(drawn, truth[row, :, :, 3])


def test_slices_without_truth_are_drawn_in_their_order(predictions: Path) -> None:
    predictions.with_name("msks_test.npy").unlink()
    review = gather_slices(open_slice_review(predictions), most=2)
    assert not review.scores and review.cases[0].truth is None
    assert [one.name for one in review.cases] == ["Brats17_01_1, slice 0", "Brats17_01_1, slice 1"]


def test_what_cannot_be_drawn_is_told(
    predictions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: str) -> str:
        assert main([*arguments, "--out", str(tmp_path / "page.png")]) == 2
        return capsys.readouterr().err

    assert "is no file of predictions" in refused(str(tmp_path / "imgs_test.npy"))
    assert "no such file" in refused(str(tmp_path / "none_predictions.npy"))
    assert "a file of volumes" in refused(str(predictions), "--gif")
    other = ("--inputs", str(tmp_path / "imgs_train.npy"))
    assert f"has 24 slices, {other[1]} 12" in refused(str(predictions), *other)
    write_hdf5(tmp_path / "output_1.h5", predictions, range(3), inputs="gone.npy")
    assert "its slices are not at 'gone.npy'" in refused(str(tmp_path / "output_1.h5"))
    predictions.with_name("predict.json").unlink()
    assert "does not say of which slices" in refused(str(predictions))
    scan = {"source": str(tmp_path), "slices": None}
    (tmp_path / "predict.json").write_text(json.dumps(scan))
    predictions.rename(tmp_path / "brain_predictions.npy")
    assert "is of the raw scan brain" in refused(str(tmp_path / "brain_predictions.npy"))
    assert not (tmp_path / "page.png").exists()


@pytest.mark.parametrize(
    ("slices", "rows"), [('{"channels": "x"}', ["000003"]), ('{"channels": [2]}', ["3"])]
)
def test_a_file_that_says_what_is_not_so_is_told(
    predictions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    slices: str,
    rows: list[str],
) -> None:
    file_of = tmp_path / "output_1.h5"
    write_hdf5(file_of, predictions, range(0))
    with h5py.File(file_of, "a") as file:
        file.attrs["slices"] = slices
        for name in rows:
            file[name] = np.zeros((1, 16, 16), np.float32)
    assert main([str(file_of)]) == 2
    assert "Error: " in capsys.readouterr().err
