"""The numbers. Counts are true/false positives/negatives of foreground pixels. Torch-free.

Accuracy is the mean over background and foreground of 2TP / (2TP + FP + FN), with the counts of
all images summed at the network's size; a class that is absent in truth and prediction counts 1.
Foreground Dice and IoU are means over the images that have foreground, each at its own size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Counts:
    """Pixels of one image, or of many."""

    tp: int
    fp: int
    fn: int
    tn: int

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn
        )


def dice(tp: int, fp: int, fn: int) -> float:
    """2TP / (2TP + FP + FN), 1 where there is nothing to find and nothing was found."""
    total = 2 * tp + fp + fn
    return 2 * tp / total if total else 1.0


def iou(tp: int, fp: int, fn: int) -> float:
    """TP / (TP + FP + FN), 1 where there is nothing to find and nothing was found."""
    total = tp + fp + fn
    return tp / total if total else 1.0


def accuracy(counts: Counts) -> float:
    """Mean of the Dice of background and foreground."""
    foreground = dice(counts.tp, counts.fp, counts.fn)
    return (foreground + dice(counts.tn, counts.fn, counts.fp)) / 2


@dataclass(frozen=True)
class ImageScore:
    """One image: counts at the network's size (`counts`) and at its own size (`own`)."""

    name: str
    counts: Counts
    own: Counts

    @property
    def empty(self) -> bool:
        """Whether the truth has no foreground."""
        return self.own.tp + self.own.fn == 0

    @property
    def dice(self) -> float:
        """Foreground Dice at the image's own size."""
        return dice(self.own.tp, self.own.fp, self.own.fn)

    @property
    def iou(self) -> float:
        """Foreground IoU at the image's own size."""
        return iou(self.own.tp, self.own.fp, self.own.fn)

    def as_dict(self) -> dict[str, Any]:
        """For result.json."""
        scores = {"empty": self.empty, "dice": self.dice, "iou": self.iou}
        return {"name": self.name, **scores, **asdict(self.counts), "own": asdict(self.own)}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> ImageScore:
        """Back from result.json."""
        counts = Counts(**{key: content[key] for key in ("tp", "fp", "fn", "tn")})
        return cls(content["name"], counts, Counts(**content["own"]))


def total(scores: Iterable[ImageScore]) -> Counts:
    """Summed counts at the network's size."""
    return sum((score.counts for score in scores), Counts(0, 0, 0, 0))


def mean(values: Sequence[float]) -> float | None:
    """The mean, None of nothing."""
    return sum(values) / len(values) if values else None


def summary(scores: Sequence[ImageScore]) -> dict[str, float | None]:
    """accuracy, foreground_dice, iou (None without foreground images) and empty_correct.

    `empty_correct` is the share of the images without foreground in which none was predicted.
    """
    lesions = [score for score in scores if not score.empty]
    empty = [score for score in scores if score.empty]
    return {
        "accuracy": accuracy(total(scores)),
        "foreground_dice": mean([score.dice for score in lesions]),
        "iou": mean([score.iou for score in lesions]),
        "empty_correct": mean([float(score.own.fp == 0) for score in empty]),
    }
