"""The evaluation phase: what a network scores on images that have masks, or predicts for others."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer import metrics
from trainer.console import Console
from trainer.data.cache import SHARE_OF_FREE_MEMORY, ImageSet, free_bytes
from trainer.data.transforms import BatchTransform
from trainer.device import autocast, memory_layout, on_device
from trainer.losses import LossFunction
from trainer.metrics import Counts, ImageScore
from trainer.networks.build import SegmentationNetwork
from trainer.prediction_file import Sink

PIXEL_THRESHOLD = 127
"""Targets of foreground alone hold 0 to 255: above this, a pixel is foreground."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of a set of images; `loss` is None without a loss, `scores` empty without truth.

    `names` are those of the classes, the background first.
    """

    loss: float | None
    scores: list[ImageScore]
    names: tuple[str, ...] = ("background", "foreground")

    def summary(self) -> dict[str, Any]:
        """The scores of the whole set, see `metrics.summary`."""
        return metrics.summary(self.scores, self.names)


def classes_of(probabilities: Tensor) -> Tensor:
    """(n, C, H, W) -> the class of each pixel (n, H, W): the likeliest, of one output above 0.5."""
    if probabilities.shape[1] == 1:
        return (probabilities[:, 0] > 0.5).long()
    return probabilities.argmax(dim=1)


def own_size_classes(probabilities: Tensor, size: tuple[int, int]) -> Tensor:
    """Probabilities (C, h, w) at the network's size -> classes (H, W) at `size` (height, width)."""
    resized = F.interpolate(probabilities[None], size, mode="bilinear", align_corners=False)
    return classes_of(resized)[0]


def _truth(targets: Tensor, outputs: int) -> Tensor:
    """uint8 targets as `ImageSet` has them -> classes."""
    return (targets > PIXEL_THRESHOLD).long() if outputs == 1 else targets.long()


def _counts(predicted: Tensor, truth: Tensor, outputs: int) -> Tensor:
    """Classes (n, …) -> (n, outputs, 4): tp, fp, fn, tn; of the foreground alone, or each class."""
    columns = []
    for number in (1,) if outputs == 1 else range(outputs):
        p, t = (predicted == number).flatten(1), (truth == number).flatten(1)
        cells = [(p & t).sum(1), (p & ~t).sum(1), (~p & t).sum(1), (~p & ~t).sum(1)]
        columns.append(torch.stack(cells, dim=1))
    return torch.stack(columns, dim=1)


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


@torch.inference_mode()
def evaluate(
    network: SegmentationNetwork,
    images: ImageSet,
    transform: BatchTransform,
    device: torch.device,
    batch_size: int,
    loss: LossFunction | None = None,
    masks: OwnSizeMasks | None = None,
    sink: Sink | None = None,
    console: Console | None = None,
    epochs: tuple[int, int] = (1, 1),
    check: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Runs the network over `images` in batches.

    Counts stay on the device until the end, so that a GPU never waits for a number; the scores are
    the same for every batch size (the Dice loss is not: it is a mean over batches). `masks` are
    needed where the images have truth.
    """
    network.eval()
    losses: list[Tensor] = []
    at_network: list[Tensor] = []
    at_own: list[Tensor] = []
    outputs = network.description.classes
    batches = math.ceil(len(images) / batch_size)
    everything = torch.arange(len(images), device=images.device)
    for batch, indices in enumerate(everything.split(batch_size), start=1):
        check()
        numbers = range((batch - 1) * batch_size, min(batch * batch_size, len(images)))
        raw, raw_targets = images.batch(indices)
        inputs = transform.inputs(on_device(raw, device))
        with autocast(device):
            logits = network(inputs.contiguous(memory_format=memory_layout(device)))
        probabilities = network.probabilities(logits)
        if raw_targets is not None and masks is not None:
            raw_targets = on_device(raw_targets, device)
            truth = _truth(raw_targets[:, 0], outputs)
            at_network.append(_counts(classes_of(probabilities), truth, outputs))
            at_own += [
                _own_size_counts(p, masks[number])
                for p, number in zip(probabilities, numbers, strict=True)
            ]
            if loss is not None:
                losses.append(loss(logits, transform.targets(raw_targets)) * len(indices))
        if sink is not None:
            for number, image in zip(numbers, probabilities.cpu().numpy(), strict=True):
                sink.write(number, image)
        if console and batch < batches:
            console.line(_progress(epochs, batch, batches))
    if console:
        console.line(_progress(epochs, batches, batches) + _told(losses, at_network, len(images)))
    if not at_network:
        return Evaluation(None, [])
    value = float(torch.stack(losses).sum()) / len(images) if losses else None
    names = tuple(images.masks.names) if images.masks else Evaluation.names
    result = Evaluation(value, _scores(images, torch.cat(at_network), torch.stack(at_own)), names)
    if console:
        console.line(_foreground(result.summary()))
    return result


def _own_size_counts(probabilities: Tensor, mask: Tensor) -> Tensor:
    """(C, h, w) probabilities at the network's size, (H, W) mask -> (outputs, 4) counts."""
    outputs = len(probabilities)
    height, width = mask.shape
    predicted = own_size_classes(probabilities, (height, width))
    return _counts(predicted[None], _truth(mask, outputs)[None], outputs)[0]


def _as_counts(rows: list[list[int]]) -> tuple[Counts, ...]:
    return tuple(Counts(*row) for row in rows)


def _scores(images: ImageSet, at_network: Tensor, at_own: Tensor) -> list[ImageScore]:
    rows = zip(images.pairs, at_network.tolist(), at_own.tolist(), strict=True)
    return [ImageScore(pair.name, _as_counts(net), _as_counts(own)) for pair, net, own in rows]


def _progress(epochs: tuple[int, int], batch: int, batches: int) -> str:
    return f"Eval  Epoch [{epochs[0]:3d}/{epochs[1]:3d}] : Batch [{batch:5d}/{batches:5d}]"


def _told(losses: list[Tensor], at_network: list[Tensor], images: int) -> str:
    if not at_network:
        return ""
    accuracy = metrics.accuracy(_as_counts(torch.cat(at_network).sum(0).tolist()))
    value = f" (Loss: {float(torch.stack(losses).sum()) / images:.4f})" if losses else ""
    return f"{value} | Accuracy: {accuracy:.3f}"


def _foreground(summary: dict[str, Any]) -> str:
    if summary["foreground_dice"] is None:
        return "Foreground Dice: none of the images has foreground"
    dice, iou = summary["foreground_dice"], summary["iou"]
    where = "(images with foreground, at their own size)"
    line = f"Foreground Dice: {dice:.3f}, IoU: {iou:.3f} {where}"
    told = [f"{n} {'-' if v is None else f'{v:.3f}'}" for n, v in summary["class_dice"].items()]
    return f"{line}; Dice of {', '.join(told)}" if len(told) > 1 else line


def as_result(evaluation: Evaluation, evaluated_on: str) -> dict[str, Any]:
    """For result.json: the summary and every image."""
    return {
        "evaluated_on": evaluated_on,
        "loss": evaluation.loss,
        **evaluation.summary(),
        "images": [score.as_dict() for score in evaluation.scores],
    }
