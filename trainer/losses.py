"""Losses for one foreground class: logits (N, 1, H, W) and targets in [0, 1] -> a scalar.

They take logits, not probabilities, and compute in single precision: a sigmoid before the loss
rounds to 1 in half precision and makes the logarithm infinite.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.nn import functional as F

from trainer.config import Loss

LossFunction = Callable[[Tensor, Tensor], Tensor]


def bce(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy, -[t log p + (1 - t) log(1 - p)], mean over all pixels."""
    return F.binary_cross_entropy_with_logits(logits.float(), target.float())


def dice(logits: Tensor, target: Tensor, eps: float) -> Tensor:
    """Soft Dice loss, 1 - (2 Σpt + eps) / (Σp + Σt + eps) (Milletari et al. 2016, with plain sums).

    The sums go over the whole batch, so that an image without foreground adds its false positives
    and nothing else. A batch without any foreground gives 1 - eps / (Σp + eps), zero where the
    prediction is empty too.
    """
    p, t = logits.float().sigmoid(), target.float()
    return 1 - (2 * (p * t).sum() + eps) / (p.sum() + t.sum() + eps)


def build_loss(loss: Loss) -> LossFunction:
    """The function that a configuration's loss section names."""
    builders: dict[str, Callable[[], LossFunction]] = {
        "bce": lambda: bce,
        "dice": lambda: partial(dice, eps=loss.eps),
    }
    return builders[loss.function]()
