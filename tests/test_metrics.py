"""The numbers against an independent computation in numpy."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.metrics import (
    Counts,
    ImageScore,
    LabelScore,
    accuracy,
    dice,
    iou,
    label_summary,
    mean,
    summary,
    total,
)


def counts(predicted: np.ndarray, truth: np.ndarray) -> Counts:
    cells = [(True, True), (True, False), (False, True), (False, False)]
    return Counts(*(int(((predicted == p) & (truth == t)).sum()) for p, t in cells))


@pytest.mark.parametrize(
    ("tp", "fp", "fn", "expected_dice", "expected_iou"),
    [(3, 1, 2, 6 / 9, 3 / 6), (0, 4, 0, 0, 0), (0, 0, 4, 0, 0), (0, 0, 0, 1, 1), (5, 0, 0, 1, 1)],
)
def test_dice_and_iou(tp: int, fp: int, fn: int, expected_dice: float, expected_iou: float) -> None:
    assert dice(tp, fp, fn) == expected_dice
    assert iou(tp, fp, fn) == expected_iou


def test_accuracy_is_the_mean_over_both_classes() -> None:
    rng = np.random.default_rng(0)
    predicted, truth = rng.random((2, 500)) < np.array([[0.3], [0.2]])
    per_class = [
        2 * ((predicted == c) & (truth == c)).sum() / ((predicted == c).sum() + (truth == c).sum())
        for c in (False, True)
    ]
    assert accuracy([counts(predicted, truth)]) == pytest.approx(np.mean(per_class), abs=1e-12)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Counts(0, 0, 0, 100), 1.0),  # no foreground in truth and prediction
        (Counts(100, 0, 0, 0), 1.0),  # no background
        (Counts(0, 0, 50, 50), (0 + 100 / 150) / 2),  # all background predicted
        (Counts(0, 100, 0, 0), 0.0),  # everything is wrong
    ],
)
def test_a_class_that_is_absent_counts_one(found: Counts, expected: float) -> None:
    assert accuracy([found]) == pytest.approx(expected)


TWO = ["background", "lesion"]


def scores() -> list[ImageScore]:
    """Lesion found, lesion missed, empty and clean, empty with a false pixel."""
    own = [Counts(4, 4, 0, 8), Counts(0, 0, 4, 12), Counts(0, 0, 0, 16), Counts(0, 1, 0, 15)]
    net = [Counts(1, 1, 0, 2), Counts(0, 0, 1, 3), Counts(0, 0, 0, 4), Counts(0, 1, 0, 3)]
    pairs = enumerate(zip(net, own, strict=True))
    return [ImageScore(f"{n}.png", (at_net,), (at_own,)) for n, (at_net, at_own) in pairs]


def test_the_summary_sums_at_the_networks_size_and_averages_at_their_own() -> None:
    assert total(scores()) == [Counts(1, 2, 1, 12)]
    result = summary(scores(), TWO)
    assert result["accuracy"] == pytest.approx((2 / 5 + 24 / 27) / 2)
    assert result["foreground_dice"] == pytest.approx((8 / 12 + 0) / 2)
    assert result["iou"] == pytest.approx((4 / 8 + 0) / 2)
    assert result["empty_correct"] == 0.5
    assert result["class_dice"] == {"lesion": result["foreground_dice"]}


def test_several_classes_against_numpy() -> None:
    """Accuracy over summed counts of all classes; an image's Dice over the classes it has."""
    rng = np.random.default_rng(3)
    truths, predictions = rng.integers(0, 4, (2, 5, 6, 7))
    truths[0][truths[0] == 2] = 0  # no class 2 in the first image
    images = []
    for n, (t, p) in enumerate(zip(truths, predictions, strict=True)):
        each = tuple(counts(p == c, t == c) for c in range(4))
        images.append(ImageScore(f"{n}.png", each, each))

    def one(p: np.ndarray, t: np.ndarray, c: int) -> float:
        return float(2 * ((p == c) & (t == c)).sum() / ((p == c).sum() + (t == c).sum()))

    names = ["background", "a", "b", "c"]
    result = summary(images, names)
    assert result["accuracy"] == pytest.approx(
        np.mean([one(predictions, truths, c) for c in range(4)])
    )
    pairs = list(zip(predictions, truths, strict=True))
    per_image = [np.mean([one(p, t, c) for c in (1, 2, 3) if (t == c).any()]) for p, t in pairs]
    assert result["foreground_dice"] == pytest.approx(np.mean(per_image))
    assert list(result["class_dice"]) == names[1:]
    assert result["class_dice"]["b"] == pytest.approx(np.mean([one(p, t, 2) for p, t in pairs[1:]]))
    assert [ImageScore.from_dict(i.as_dict()) for i in images] == images


def test_a_set_without_foreground_has_no_foreground_dice() -> None:
    result = summary(scores()[2:3], TWO)
    nothing = {"foreground_dice": None, "iou": None, "class_dice": {"lesion": None}}
    assert result == {"accuracy": 1.0, **nothing, "empty_correct": 1.0}
    assert summary(scores()[:1], TWO)["empty_correct"] is None


def test_a_lesion_lost_by_the_resize_is_still_a_lesion() -> None:
    score = ImageScore("a.png", (Counts(0, 0, 0, 4),), (Counts(0, 0, 1, 15),))
    assert not score.empty and score.dice == 0


def test_a_score_comes_back_from_result_json() -> None:
    for score in scores():
        assert ImageScore.from_dict(score.as_dict()) == score
    assert scores()[0].as_dict()["dice"] == pytest.approx(8 / 12)


def test_mean_of_nothing() -> None:
    assert mean([]) is None and mean([1.0, 2.0]) == 1.5


def test_labels_are_right_or_wrong() -> None:
    rows = [("a", 0, 0), ("b", 0, 1), ("c", 1, 1), ("d", 2, 0)]
    found = label_summary([LabelScore(*row) for row in rows], ("cat", "dog", "owl"))
    assert found["accuracy"] == 0.5 and found["foreground_dice"] is None
    assert found["class_accuracy"] == {"cat": 0.5, "dog": 1.0, "owl": 0.0}
    told = LabelScore("b", 0, 1).as_dict()
    assert told == {"name": "b", "label": 0, "predicted": 1, "correct": False}
