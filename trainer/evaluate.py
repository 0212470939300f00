"""The evaluation phase: what a network scores on images that have masks, or predicts for others."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from trainer import metrics
from trainer.console import Console
from trainer.data.cache import SHARE_OF_FREE_MEMORY, ImageSet, free_bytes
from trainer.data.transforms import BatchTransform
from trainer.device import autocast
from trainer.losses import LossFunction
from trainer.metrics import Counts, ImageScore
from trainer.networks.build import SegmentationNetwork

PIXEL_THRESHOLD = 127
"""Targets hold 0 to 255: above this, a pixel is foreground."""


class Sink(Protocol):
    """Takes predictions; see predict.py."""

    def write(self, name: str, probabilities: NDArray[np.float32]) -> None:
        """One image's probabilities (C, H, W)."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of a set of images; `loss` is None without a loss, all is None without truth."""

    loss: float | None
    scores: list[ImageScore]

    def summary(self) -> dict[str, float | None]:
        """The scores of the whole set, see `metrics.summary`."""
        return metrics.summary(self.scores)


def _counts(predicted: Tensor, truth: Tensor) -> Tensor:
    """(n, …) boolean predictions and truth -> (n, 4): tp, fp, fn, tn."""
    p, t = predicted.flatten(1), truth.flatten(1)
    return torch.stack([(p & t).sum(1), (p & ~t).sum(1), (~p & t).sum(1), (~p & ~t).sum(1)], dim=1)


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
    batches = math.ceil(len(images) / batch_size)
    everything = torch.arange(len(images), device=images.device)
    for batch, indices in enumerate(everything.split(batch_size), start=1):
        check()
        numbers = range((batch - 1) * batch_size, min(batch * batch_size, len(images)))
        raw, raw_targets = images.batch(indices)
        inputs = transform.inputs(raw.to(device, non_blocking=True))
        with autocast(device):
            logits = network(inputs.contiguous(memory_format=torch.channels_last))
        probabilities = network.probabilities(logits)
        if raw_targets is not None and masks is not None:
            raw_targets = raw_targets.to(device, non_blocking=True)
            at_network.append(_counts(probabilities > 0.5, raw_targets > PIXEL_THRESHOLD))
            at_own += [
                _own_size_counts(p, masks[number])
                for p, number in zip(probabilities, numbers, strict=True)
            ]
            if loss is not None:
                losses.append(loss(logits, transform.targets(raw_targets)) * len(indices))
        if sink is not None:
            for number, image in zip(numbers, probabilities.cpu().numpy(), strict=True):
                sink.write(images.pairs[number].name, image)
        if console and batch < batches:
            console.line(_progress(epochs, batch, batches))
    if console:
        console.line(_progress(epochs, batches, batches) + _told(losses, at_network, len(images)))
    if not at_network:
        return Evaluation(None, [])
    value = float(torch.stack(losses).sum()) / len(images) if losses else None
    result = Evaluation(value, _scores(images, torch.cat(at_network), torch.stack(at_own)))
    if console:
        console.line(_foreground(result.summary()))
    return result


def _own_size_counts(probabilities: Tensor, mask: Tensor) -> Tensor:
    """(1, h, w) probabilities at the network's size, (H, W) mask -> tp, fp, fn, tn."""
    size = list(mask.shape)
    resized = F.interpolate(probabilities[None], size, mode="bilinear", align_corners=False)
    return _counts(resized[0] > 0.5, mask[None] > PIXEL_THRESHOLD)[0]


def _scores(images: ImageSet, at_network: Tensor, at_own: Tensor) -> list[ImageScore]:
    rows = zip(images.pairs, at_network.tolist(), at_own.tolist(), strict=True)
    return [ImageScore(pair.name, Counts(*net), Counts(*own)) for pair, net, own in rows]


def _progress(epochs: tuple[int, int], batch: int, batches: int) -> str:
    return f"Eval  Epoch [{epochs[0]:3d}/{epochs[1]:3d}] : Batch [{batch:5d}/{batches:5d}]"


def _told(losses: list[Tensor], at_network: list[Tensor], images: int) -> str:
    if not at_network:
        return ""
    accuracy = metrics.accuracy(Counts(*torch.cat(at_network).sum(0).tolist()))
    value = f" (Loss: {float(torch.stack(losses).sum()) / images:.4f})" if losses else ""
    return f"{value} | Accuracy: {accuracy:.3f}"


def _foreground(summary: dict[str, float | None]) -> str:
    if summary["foreground_dice"] is None:
        return "Foreground Dice: none of the images has foreground"
    dice, iou = summary["foreground_dice"], summary["iou"]
    where = "(images with foreground, at their own size)"
    return f"Foreground Dice: {dice:.3f}, IoU: {iou:.3f} {where}"


def as_result(evaluation: Evaluation, evaluated_on: str) -> dict[str, Any]:
    """For result.json: the summary and every image."""
    return {
        "evaluated_on": evaluated_on,
        "loss": evaluation.loss,
        **evaluation.summary(),
        "images": [score.as_dict() for score in evaluation.scores],
    }
