"""Losses: logits (N, C, H, W) and targets (N, 1, H, W) -> a scalar.

Targets are in [0, 1] for a network of one output, class indices for one of several.

They take logits, not probabilities, and compute in single precision: a sigmoid before the loss
rounds to 1 in half precision and makes the logarithm infinite.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.nn import functional as F

from trainer.config import LOSSES_OF_CLASSES, LOSSES_OF_FOREGROUND, Loss
from trainer.errors import InputError

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


def nll(logits: Tensor, target: Tensor) -> Tensor:
    """Negative log-likelihood, -log softmax(logits)[target], mean over all pixels."""
    return F.cross_entropy(logits.float(), target[:, 0].long())


def dice_of_classes(logits: Tensor, target: Tensor, eps: float) -> Tensor:
    """The mean over all classes, background among them, of the soft Dice loss of each.

    As `dice`, with softmax and sums over the batch; a class that the batch lacks adds
    1 - eps / (Σp + eps).
    """
    p = logits.float().softmax(dim=1)
    t = F.one_hot(target[:, 0].long(), p.shape[1]).movedim(-1, 1).to(p.dtype)
    over = (0, 2, 3)
    return (1 - (2 * (p * t).sum(over) + eps) / (p.sum(over) + t.sum(over) + eps)).mean()


def build_loss(loss: Loss, classes: int) -> LossFunction:
    """The function that a configuration's loss section names, for a network of so many outputs."""
    accepted = LOSSES_OF_FOREGROUND if classes == 1 else LOSSES_OF_CLASSES
    if loss.function not in accepted:
        what = "foreground alone" if classes == 1 else f"{classes} classes"
        found = f"{loss.function} does not fit a network for {what}"
        raise InputError("loss.function", found, ", ".join(accepted))
    builders: dict[tuple[str, bool], Callable[[], LossFunction]] = {
        ("bce", True): lambda: bce,
        ("dice", True): lambda: partial(dice, eps=loss.eps),
        ("nll", False): lambda: nll,
        ("dice", False): lambda: partial(dice_of_classes, eps=loss.eps),
    }
    return builders[loss.function, classes == 1]()
