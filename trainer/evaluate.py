"""The evaluation phase: scores of samples that have truth, predictions for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer import metrics
from trainer.config import Precision
from trainer.console import Console
from trainer.data.cache import SHARE_OF_FREE_MEMORY, ImageSet, free_bytes
from trainer.data.order import batches_in_order
from trainer.data.samples import Samples
from trainer.data.transforms import BatchTransform
from trainer.device import forward_of, on_device
from trainer.losses import LossFunction, probabilities
from trainer.metrics import Counts, ImageScore, LabelScore, VolumeScore
from trainer.networks.build import SegmentationNetwork
from trainer.outputs import printed_batches
from trainer.prediction_file import Sink
from trainer.tasks import Aim

NO_CLASS = -1
MOST_CLASSES_TOLD = 20
"""The log tells the accuracy of each class where there are so many or fewer."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of a set of samples; `loss` is None without a loss, `scores` empty without truth.

    `names` are those of the classes.
    """

    loss: float | None
    scores: Sequence[ImageScore] | Sequence[LabelScore] | Sequence[VolumeScore]
    names: tuple[str, ...] = ("background", "foreground")

    def summary(self) -> dict[str, Any]:
        """The scores of the whole set, see `metrics.summary` and `metrics.label_summary`."""
        labels = [score for score in self.scores if isinstance(score, LabelScore)]
        if labels:
            return metrics.label_summary(labels, self.names)
        volumes = [score for score in self.scores if isinstance(score, VolumeScore)]
        if volumes:
            return metrics.volume_summary(volumes, self.names)
        images = [score for score in self.scores if isinstance(score, ImageScore)]
        return metrics.summary(images, self.names)


def classes_of(probabilities: Tensor) -> Tensor:
    """(n, C, …) -> the class of each pixel (n, …): the likeliest, of one output above 0.5."""
    if probabilities.shape[1] == 1:
        return (probabilities[:, 0] > 0.5).long()
    return probabilities.argmax(dim=1)


def own_size_classes(probabilities: Tensor, size: tuple[int, int]) -> Tensor:
    """Probabilities (C, h, w) at the network's size -> classes (H, W) at `size` (height, width)."""
    resized = F.interpolate(probabilities[None], size, mode="bilinear", align_corners=False)
    return classes_of(resized)[0]


def _cells(predicted: Tensor, truth: Tensor) -> Tensor:
    """Yes or no (n, …) -> (n, 4): tp, fp, fn, tn."""
    p, t = predicted.flatten(1), truth.flatten(1)
    return torch.stack([(p & t).sum(1), (p & ~t).sum(1), (~p & t).sum(1), (~p & ~t).sum(1)], dim=1)


def _class_counts(predicted: Tensor, truth: Tensor, outputs: int, ignored: int | None) -> Tensor:
    """Classes (n, …) -> (n, outputs, 4): of the foreground alone, or of each class."""
    if ignored is not None:
        predicted = torch.where(truth == ignored, NO_CLASS, predicted)
    numbers = (1,) if outputs == 1 else range(outputs)
    return torch.stack([_cells(predicted == n, truth == n) for n in numbers], dim=1)


def _counts(probabilities: Tensor, targets: Tensor, aim: Aim) -> Tensor:
    """Counts (n, outputs, 4) of a batch; for labels (n, 2): the class and the one found."""
    outputs = probabilities.shape[1]
    if aim.task == "labels":
        return torch.stack([targets.long(), classes_of(probabilities)], dim=1)
    if aim.task == "classes":
        padding = targets[:, 0].isnan()  # of blocks; it is of no class
        found = torch.where(padding, NO_CLASS, classes_of(probabilities))
        truth = targets[:, 0].nan_to_num(NO_CLASS).long()
        return _class_counts(found, truth, outputs, aim.ignored)
    found, truth = (probabilities > 0.5) & ~targets.isnan(), targets > 0.5
    return torch.stack([_cells(found[:, n], truth[:, n]) for n in range(outputs)], dim=1)


class OwnSizeMasks:
    """The masks of a set in their own sizes, on the device.

    They are kept until half of the memory that was free at first is taken; others are read anew.
    """

    def __init__(self, images: ImageSet, device: torch.device) -> None:
        self._images, self._device = images, device
        self._kept: dict[int, Tensor] = {}
        self._budget = SHARE_OF_FREE_MEMORY * free_bytes(device)

    def __getitem__(self, index: int) -> Tensor:
        if index in self._kept:
            return self._kept[index]
        mask = torch.from_numpy(self._images.own_size_mask(index)).to(self._device)
        if mask.nbytes <= self._budget:
            self._budget -= mask.nbytes
            self._kept[index] = mask
        return mask


class _Tally:
    """What a set has scored so far. It stays on the device until somebody asks."""

    def __init__(self, aim: Aim) -> None:
        self.task, self.ignored = aim.task, aim.ignored
        self.at_network: list[Tensor] = []
        self.at_own: list[Tensor] = []
        self.losses: list[Tensor] = []
        self.samples = 0

    def accuracy(self) -> float:
        """Of all samples so far."""
        told = torch.cat(self.at_network)
        if self.task == "labels":
            told = told[told[:, 0] != (NO_CLASS if self.ignored is None else self.ignored)]
            return float((told[:, 0] == told[:, 1]).sum()) / max(1, len(told))
        return metrics.accuracy(_as_counts(told.sum(0).tolist()))

    def loss(self) -> float | None:
        """The mean over all samples, None without a loss."""
        return float(torch.stack(self.losses).sum()) / self.samples if self.losses else None

    def scores(self, names: Sequence[str]) -> list[ImageScore] | list[LabelScore]:
        """One a sample."""
        at_network = torch.cat(self.at_network).tolist()
        if self.task == "labels":
            rows = zip(names, at_network, strict=True)
            return [LabelScore(name, *row) for name, row in rows if row[0] != self.ignored]
        at_own = torch.stack(self.at_own).tolist() if self.at_own else at_network
        return [
            ImageScore(name, _as_counts(net), _as_counts(own))
            for name, net, own in zip(names, at_network, at_own, strict=True)
        ]


@torch.inference_mode()
def evaluate(
    network: SegmentationNetwork,
    samples: Samples,
    transform: BatchTransform,
    device: torch.device,
    batch_size: int,
    aim: Aim,
    loss: LossFunction | None = None,
    masks: OwnSizeMasks | None = None,
    sink: Sink | None = None,
    console: Console | None = None,
    epochs: tuple[int, int] = (1, 1),
    precision: Precision = "auto",
    check: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Runs the network over `samples` in batches.

    Counts stay on the device until a line is printed, so that a GPU hardly waits for numbers; the
    scores are the same for every batch size (a Dice loss is not: it is a mean over batches). With
    `masks` images are scored at their own size, too.
    """
    network.eval()
    tally = _Tally(aim)
    outputs = network.description.classes
    planned = batches_in_order(samples.groups, batch_size, samples.device)
    batches = len(planned)
    printed = printed_batches(batches)
    forward = forward_of(network, device, precision)
    for batch, indices in enumerate(planned, start=1):
        check()
        numbers = range(tally.samples, tally.samples + len(indices))
        raw, raw_targets = samples.batch(indices)
        raw = on_device(raw, device)
        if raw_targets is None:
            inputs, targets = transform.inputs(raw), None
        else:
            raw_targets = on_device(raw_targets, device)
            inputs, targets = transform.evaluated(raw, raw_targets, indices)
        logits = forward(inputs)
        told = ""
        tally.samples += len(indices)
        if targets is not None:
            # The likeliest of several is the largest logit: a whole volume may be large.
            several = aim.task in ("classes", "labels") and masks is None
            found = logits if several else probabilities(logits, aim.reading)
            tally.at_network.append(_counts(found, targets, aim))
            if masks is not None:
                tally.at_own += [
                    _own_size_counts(p, transform.truth(masks[number]), outputs, aim.ignored)
                    for p, number in zip(found, numbers, strict=True)
                ]
            if loss is not None:
                tally.losses.append(loss(logits, targets) * len(indices))
        if sink is not None:
            output = network.output(logits).float().cpu().numpy()
            for number, one in zip(numbers, output, strict=True):
                sink.write(number, one)
        if console and batch in printed:
            if targets is not None:
                mean = tally.loss()
                told = "" if mean is None else f" (Loss: {mean:.4f})"
                told += f" | Accuracy: {tally.accuracy():.3f}"
            console.line(f"{_progress(epochs, batch, batches)}{told}")
    if not tally.at_network:
        return Evaluation(None, [])
    result = Evaluation(tally.loss(), tally.scores(samples.names), aim.names)
    if console:
        for line in _more(result.summary(), own_size=masks is not None):
            console.line(line)
    return result


def _own_size_counts(
    probabilities: Tensor, truth: Tensor, outputs: int, ignored: int | None
) -> Tensor:
    """(C, h, w) probabilities at the network's size, (H, W) truth -> (outputs, 4) counts."""
    height, width = truth.shape
    predicted = own_size_classes(probabilities, (height, width))
    classes = (truth > 0.5).long() if outputs == 1 else truth.long()
    return _class_counts(predicted[None], classes[None], outputs, ignored)[0]


def _as_counts(rows: list[list[int]]) -> tuple[Counts, ...]:
    return tuple(Counts(*row) for row in rows)


def _progress(epochs: tuple[int, int], batch: int, batches: int) -> str:
    return f"Eval  Epoch [{epochs[0]:3d}/{epochs[1]:3d}] : Batch [{batch:5d}/{batches:5d}]"


def _more(summary: dict[str, Any], own_size: bool) -> Iterator[str]:
    """What the last line of an evaluation does not tell."""
    by_class = summary.get("class_accuracy")
    if by_class is not None:
        if 2 < len(by_class) <= MOST_CLASSES_TOLD:
            told = ", ".join(f"{name} {share:.3f}" for name, share in by_class.items())
            yield f"Accuracy by class: {told}"
        return
    if summary["foreground_dice"] is None:
        yield "Foreground Dice: none of the samples has foreground"
        return
    dice, iou = summary["foreground_dice"], summary["iou"]
    where = "images with foreground, at their own size" if own_size else "samples with foreground"
    line = f"Foreground Dice: {dice:.3f}, IoU: {iou:.3f} ({where})"
    told_of = [f"{n} {'-' if v is None else f'{v:.3f}'}" for n, v in summary["class_dice"].items()]
    yield f"{line}; Dice of {', '.join(told_of)}" if len(told_of) > 1 else line


def as_result(evaluation: Evaluation, evaluated_on: str) -> dict[str, Any]:
    """For result.json: the summary and every sample."""
    return {
        "evaluated_on": evaluated_on,
        "loss": evaluation.loss,
        **evaluation.summary(),
        "images": [score.as_dict() for score in evaluation.scores],
    }
