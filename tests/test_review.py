"""The picture of predictions: numbers by hand, order, and what is said about wrong input."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from trainer.cases import Review, classes, gather, open_predictions, resized, scored
from trainer.data.masks import Masks
from trainer.review import main, shortened

SIDE = 40


def square(top: int, left: int, side: int) -> NDArray[np.uint8]:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[top : top + side, left : left + side] = 255
    return mask


TRUTH = {
    "good.png": square(10, 10, 10),
    "half.png": square(10, 10, 10),
    "clean.png": square(0, 0, 0),
    "false.png": square(0, 0, 0),
    "missed.png": square(5, 5, 8),
}
PREDICTED = {
    "good.png": square(10, 10, 10),
    "half.png": square(10, 15, 10),
    "clean.png": square(0, 0, 0),
    "false.png": square(2, 2, 3),
    "missed.png": square(0, 0, 0),
}


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """Five images of 40x40 with masks, predicted at their own size."""
    rng = np.random.default_rng(0)
    for folder in ("inputs", "targets", "predictions"):
        (tmp_path / folder).mkdir()
    for name, truth in TRUTH.items():
        grey = rng.integers(20, 200, (SIDE, SIDE)).astype(np.uint8)
        Image.fromarray(grey).save(tmp_path / "inputs" / name)
        Image.fromarray(truth).save(tmp_path / "targets" / name)
    write(tmp_path / "predictions/output_1.h5", PREDICTED, targets=str(tmp_path / "targets"))
    return tmp_path / "predictions/output_1.h5"


def write(path: Path, predicted: dict[str, NDArray[np.uint8]], **attributes: Any) -> None:
    with h5py.File(path, "w") as file:
        for name, mask in predicted.items():
            file[name] = (0.05 + 0.9 * (mask[None] / 255)).astype(np.float32)
        file.attrs["inputs"] = str(path.parent.parent / "inputs")
        file.attrs.update(attributes)


def gathered(path: Path, most: int = 12) -> Review:
    with open_predictions(path) as source:
        return gather(source, most)


def test_dice_is_what_the_hand_computes(predictions: Path) -> None:
    scores = {score.name: score for score in gathered(predictions).scores}
    assert scores["good.png"].dice == 1
    assert scores["half.png"].dice == pytest.approx(2 * 50 / (100 + 100))
    assert scores["missed.png"].dice == 0
    assert scores["false.png"].text == "no lesion: 9 false pixels"
    assert scores["clean.png"].text == "no lesion: 0 false pixels"
    assert scores["half.png"].text == "Dice 0.50"


def test_the_worst_cases_come_first(predictions: Path) -> None:
    review = gathered(predictions, most=3)
    names = [score.name for score in review.scores]
    assert names[:3] == ["false.png", "missed.png", "half.png"]
    assert set(names[3:]) == {"good.png", "clean.png"}
    assert [case.name for case in review.cases] == names[:3]
    assert review.total == 5


def test_without_truth_the_file_order_stays(predictions: Path) -> None:
    write(predictions, PREDICTED, targets="")
    review = gathered(predictions)
    assert [case.name for case in review.cases] == sorted(PREDICTED)
    assert not review.scores
    assert all(case.truth is None and case.score is None for case in review.cases)


def test_a_prediction_is_scored_at_the_size_of_its_image(predictions: Path) -> None:
    with h5py.File(predictions, "a") as file:
        del file["good.png"]
        file["good.png"] = np.kron(np.eye(2), np.ones((5, 5)))[None].astype(np.float32)
    case = next(case for case in gathered(predictions).cases if case.name == "good.png")
    assert case.probability.shape == (1, SIDE, SIDE)
    assert case.predicted[:18, :18].all()
    assert not case.predicted[:18, 22:].any()


@pytest.mark.parametrize("size", [(7, 5), (96, 40), (12, 64)])
def test_resizing_is_that_of_the_trainer(size: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(1).random((2, 24, 32)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(values)[None], (size[1], size[0]), mode="bilinear", align_corners=False
    )[0].numpy()
    np.testing.assert_allclose(resized(values, size), expected, atol=1e-5)


def test_several_classes_take_the_likeliest() -> None:
    probability = np.array([[[0.6, 0.2]], [[0.3, 0.2]], [[0.1, 0.6]]], np.float32)
    assert classes(probability, 0.5).tolist() == [[0, 2]]
    assert classes(probability[:1], 0.5).tolist() == [[1, 0]]


def test_nothing_to_find_and_nothing_found_is_right() -> None:
    nothing = np.zeros((4, 4), np.uint8)
    assert scored("a", nothing, nothing, 2).dice == 1


def test_the_mask_threshold_of_the_file_counts(predictions: Path) -> None:
    Image.fromarray(TRUTH["good.png"] // 255).save(predictions.parents[1] / "targets/good.png")
    targets, masks = predictions.parents[1] / "targets", Masks(threshold=0.5).model_dump_json()
    write(predictions, PREDICTED, targets=str(targets), masks=masks)
    scores = {score.name: score.dice for score in gathered(predictions).scores}
    assert scores["good.png"] == 1


@pytest.mark.parametrize(("truth", "images"), [(True, 5), (True, 2), (False, 3)])
def test_the_picture_has_the_drawn_images(
    predictions: Path, truth: bool, images: int, capsys: pytest.CaptureFixture[str]
) -> None:
    if not truth:
        write(predictions, PREDICTED)
    assert main([str(predictions), "--images", str(images)]) == 0
    picture = Image.open(predictions.with_suffix(".png")).convert("RGB")
    assert str(predictions.with_suffix(".png")) in capsys.readouterr().out
    assert 600 < picture.width < 2000
    assert 200 < picture.height < 2000
    pixels = np.asarray(picture).reshape(-1, 3)
    assert pixels.std() > 30
    turquoise = (np.abs(pixels.astype(int) - (0x26, 0xD9, 0xC7)).sum(axis=1) < 30).sum()
    in_legend = 60
    assert turquoise > in_legend if truth else turquoise == 0


def test_several_classes_and_odd_names_are_drawn(predictions: Path) -> None:
    name = "a $very_long$ name " + "x" * 60 + ".png"
    inputs = predictions.parents[1] / "inputs"
    Image.new("RGB", (50, 20), (90, 60, 30)).save(inputs / name)
    with h5py.File(predictions, "w") as file:
        file[name] = np.random.default_rng(0).random((3, 16, 16)).astype(np.float32)
        file.attrs["inputs"] = str(inputs)
    out = predictions.parent / "several.png"
    assert main([str(predictions), "--out", str(out)]) == 0
    assert Image.open(out).width > 600
    assert len(shortened(name)) <= 40


def test_its_own_picture_is_replaced_another_file_is_not(
    predictions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = predictions.with_suffix(".png")
    assert main([str(predictions), "--images", "1"]) == 0
    assert main([str(predictions), "--images", "1"]) == 0
    Image.new("L", (8, 8)).save(out)
    before = out.read_bytes()
    assert main([str(predictions)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert main([str(predictions), "--out", str(out.with_suffix(".jpg"))]) == 2
    assert [path.name for path in out.parent.iterdir() if path.name.startswith(".")] == []


def test_mistakes_are_told_in_one_message(
    predictions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*arguments: str) -> str:
        assert main(list(arguments)) == 2
        return capsys.readouterr().err

    assert "no such file" in told(str(tmp_path / "none.h5"))
    (tmp_path / "text.h5").write_text("text")
    assert "HDF5" in told(str(tmp_path / "text.h5"))
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    assert "no predictions" in told(str(tmp_path / "empty.h5"))
    assert "--inputs DIR" in told(str(predictions), "--inputs", str(tmp_path / "gone"))
    assert "good.png" in told(str(predictions), "--inputs", str(tmp_path / "predictions"))
    assert "--images" in told(str(predictions), "--images", "0")
    write(predictions, PREDICTED, inputs=str(tmp_path / "moved"))
    assert "--inputs DIR" in told(str(predictions))
    (tmp_path / "targets/good.png").unlink()
    write(predictions, PREDICTED, targets=str(tmp_path / "targets"))
    assert "has no mask" in told(str(predictions))


def test_review_does_not_import_torch() -> None:
    code = "import sys, trainer.review; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
