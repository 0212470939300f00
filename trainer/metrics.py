"""The numbers. Counts are true/false positives/negatives of the pixels of a class. Torch-free.

Accuracy is the mean over the classes, background among them, of 2TP / (2TP + FP + FN), with the
counts of all images summed at the network's size; a class that is absent in truth and prediction
counts 1. Foreground Dice and IoU are means over the images that have foreground, each at its own
size; with several classes an image counts with the mean over those that its truth has. The Dice of
a class is the mean over the images whose truth has it.

Where whole images have a class (labels), accuracy is the share of those that were told right.

Volumes are scored each by itself, on the grid of the scan: accuracy, foreground Dice and IoU are
means over the cases of the mean over their classes; a class that is absent in truth and prediction
counts 1 (as in MLPerf's U-Net3D). Distances are of surfaces.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    @property
    def others(self) -> Counts:
        """Counts of the other class of two."""
        return Counts(self.tn, self.fn, self.fp, self.tp)


def dice(tp: int, fp: int, fn: int) -> float:
    """2TP / (2TP + FP + FN), 1 where there is nothing to find and nothing was found."""
    total = 2 * tp + fp + fn
    return 2 * tp / total if total else 1.0


def iou(tp: int, fp: int, fn: int) -> float:
    """TP / (TP + FP + FN), 1 where there is nothing to find and nothing was found."""
    total = tp + fp + fn
    return tp / total if total else 1.0


def accuracy(counts: Sequence[Counts]) -> float:
    """Mean of the Dice of all classes; `counts` of the foreground alone, or of each class."""
    if len(counts) == 1:
        foreground, background = counts[0], counts[0].others
        counts = [background, foreground]
    return sum(dice(c.tp, c.fp, c.fn) for c in counts) / len(counts)


@dataclass(frozen=True)
class ImageScore:
    """One image: counts at the network's size (`counts`) and at its own size (`own`).

    Both hold one of the foreground, or with several classes one of each, the background first.
    """

    name: str
    counts: tuple[Counts, ...]
    own: tuple[Counts, ...]

    @property
    def foreground(self) -> tuple[Counts, ...]:
        """Counts at the image's own size, without the background."""
        return self.own if len(self.own) == 1 else self.own[1:]

    @property
    def empty(self) -> bool:
        """Whether the truth has no foreground."""
        return not any(c.tp + c.fn for c in self.foreground)

    def _mean(self, score: Callable[[int, int, int], float]) -> float:
        counted = [c for c in self.foreground if c.tp + c.fn] or self.foreground
        return sum(score(c.tp, c.fp, c.fn) for c in counted) / len(counted)

    @property
    def dice(self) -> float:
        """Foreground Dice at the image's own size."""
        return self._mean(dice)

    @property
    def iou(self) -> float:
        """Foreground IoU at the image's own size."""
        return self._mean(iou)

    @property
    def false_pixels(self) -> int:
        """Pixels at its own size that were taken for a class that they are not."""
        return sum(c.fp for c in self.foreground)

    def as_dict(self) -> dict[str, Any]:
        """For result.json."""
        content = {"name": self.name, "empty": self.empty, "dice": self.dice, "iou": self.iou}
        told = [{**asdict(n), "own": asdict(o)} for n, o in zip(self.counts, self.own, strict=True)]
        return {**content, **told[0]} if len(told) == 1 else {**content, "classes": told}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> ImageScore:
        """Back from result.json."""
        told = content.get("classes", [content])
        keys = ("tp", "fp", "fn", "tn")
        counts = tuple(Counts(**{key: one[key] for key in keys}) for one in told)
        return cls(content["name"], counts, tuple(Counts(**one["own"]) for one in told))


@dataclass(frozen=True)
class LabelScore:
    """One sample that has a class as a whole: which, and which was found."""

    name: str
    label: int
    predicted: int

    def as_dict(self) -> dict[str, Any]:
        """For result.json."""
        return {**asdict(self), "correct": self.label == self.predicted}


def label_summary(scores: Sequence[LabelScore], names: Sequence[str]) -> dict[str, Any]:
    """As `summary`; in the Dice's place `class_accuracy`, the share told right of each class."""
    of: dict[str, list[float]] = {}
    for score in scores:
        name = names[score.label] if score.label < len(names) else f"class {score.label}"
        of.setdefault(name, []).append(float(score.label == score.predicted))
    return {
        "accuracy": mean([share for shares in of.values() for share in shares]),
        "foreground_dice": None,
        "iou": None,
        "class_dice": {},
        "empty_correct": None,
        "class_accuracy": {name: mean(of[name]) for name in sorted(of)},
    }


@dataclass(frozen=True)
class VolumeScore:
    """One volume: counts of its voxels, for the foreground alone or for each class, the background
    first; `hd95_mm` and `surface_dice` of each class but the background, where they were asked for.

    A distance is None where truth or prediction is empty.
    """

    name: str
    counts: tuple[Counts, ...]
    hd95_mm: tuple[float | None, ...] = ()
    surface_dice: tuple[float | None, ...] = ()

    @property
    def foreground(self) -> tuple[Counts, ...]:
        """Without the background."""
        return self.counts if len(self.counts) == 1 else self.counts[1:]

    @property
    def dice(self) -> float:
        """Mean over the classes but the background."""
        return sum(dice(c.tp, c.fp, c.fn) for c in self.foreground) / len(self.foreground)

    @property
    def iou(self) -> float:
        """Mean over the classes but the background."""
        return sum(iou(c.tp, c.fp, c.fn) for c in self.foreground) / len(self.foreground)

    def as_dict(self) -> dict[str, Any]:
        """For result.json."""
        classes = [{**asdict(c), "dice": dice(c.tp, c.fp, c.fn)} for c in self.foreground]
        for key in ("hd95_mm", "surface_dice"):
            for one, value in zip(classes, getattr(self, key), strict=False):
                one[key] = value
        content = {"name": self.name, "dice": self.dice, "iou": self.iou, "classes": classes}
        background = {"background": asdict(self.counts[0])} if len(self.counts) > 1 else {}
        return {**content, **background}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> VolumeScore:
        """Back from result.json, without distances."""
        keys = ("tp", "fp", "fn", "tn")
        every = [content["background"]] if "background" in content else []
        every += content["classes"]
        return cls(
            content["name"], tuple(Counts(**{key: one[key] for key in keys}) for one in every)
        )


def volume_summary(scores: Sequence[VolumeScore], names: Sequence[str]) -> dict[str, Any]:
    """As `summary`, every case counting once; with hd95_mm and surface_dice by class where they
    were measured, means over the cases that have them."""
    wanted = names[1:]

    def by_class(value: Callable[[VolumeScore, int], float | None]) -> dict[str, float | None]:
        told = {}
        for at, name in enumerate(wanted):
            values = [value(score, at) for score in scores]
            told[name] = mean([one for one in values if one is not None])
        return told

    found: dict[str, Any] = {
        "accuracy": mean([accuracy(score.counts) for score in scores]),
        "foreground_dice": mean([score.dice for score in scores]),
        "iou": mean([score.iou for score in scores]),
        "class_dice": by_class(
            lambda score, at: dice(*(getattr(score.foreground[at], k) for k in ("tp", "fp", "fn")))
        ),
        "empty_correct": None,
    }
    for key in ("hd95_mm", "surface_dice"):
        if any(getattr(score, key) for score in scores):
            found[key] = by_class(lambda score, at, key=key: getattr(score, key)[at])  # type: ignore[misc]
    return found


def total(scores: Sequence[ImageScore]) -> list[Counts]:
    """Counts at the network's size, summed over the images, for each class that is counted."""
    nothing = Counts(0, 0, 0, 0)
    columns = zip(*(score.counts for score in scores), strict=True)
    return [sum(column, nothing) for column in columns] or [nothing]


def mean(values: Sequence[float]) -> float | None:
    """The mean, None of nothing."""
    return sum(values) / len(values) if values else None


def class_dice(scores: Sequence[ImageScore], names: Sequence[str]) -> dict[str, float | None]:
    """The Dice of each class but the background by name; None where no truth has it."""
    found = {}
    for at, name in enumerate(names[1:]):
        present = [c for score in scores if (c := score.foreground[at]).tp + c.fn]
        found[name] = mean([dice(c.tp, c.fp, c.fn) for c in present])
    return found


def summary(scores: Sequence[ImageScore], names: Sequence[str]) -> dict[str, Any]:
    """accuracy, foreground_dice, iou (None without foreground images), class_dice, empty_correct.

    `names` are those of the classes, background first. `empty_correct` is the share of the images
    without foreground in which none was predicted.
    """
    lesions = [score for score in scores if not score.empty]
    empty = [score for score in scores if score.empty]
    return {
        "accuracy": accuracy(total(scores)),
        "foreground_dice": mean([score.dice for score in lesions]),
        "iou": mean([score.iou for score in lesions]),
        "class_dice": class_dice(scores, names),
        "empty_correct": mean([float(score.false_pixels == 0) for score in empty]),
    }
