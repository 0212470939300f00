"""Losses: logits (N, C, …) and targets -> a scalar. trainer/tasks.py says what targets are.

They take what a network computes before its final activation, not probabilities, and compute in
single precision: a sigmoid before the loss rounds to 1 in half precision and makes the logarithm
infinite. Log-probabilities are logits of a softmax, too.

All means and sums go over the whole batch; the Dice of dice_ce over each sample. `weight` has a
number for each class, and makes a mean a weighted one; with two numbers, a network of one output is
weighed as background and foreground. Targets of `ignore_index` do not count, nor those that are not
a number (the padding of blocks); a batch in which nothing counts has the loss 0.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.config import LOSS_FIELDS, LOSSES_OF_CLASSES, LOSSES_OF_FOREGROUND, Loss
from trainer.errors import InputError
from trainer.tasks import Reading, Task, reading_of

LossFunction = Callable[[Tensor, Tensor], Tensor]


def probabilities(logits: Tensor, reading: Reading) -> Tensor:
    """Of each output, in single precision; plain numbers where logits are read as they are."""
    x = logits.float()
    if reading == "identity":
        return x
    return x.sigmoid() if reading == "sigmoid" else x.softmax(dim=1)


# ---- of one output, or of outputs that each have a target of their own ----


def bce(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy, -[t log p + (1 - t) log(1 - p)], mean over all pixels and outputs.

    An empty target is a target like any: -log(1 - p). (Good 1952.)
    """
    return F.binary_cross_entropy_with_logits(logits.float(), target.float())


def dice(logits: Tensor, target: Tensor, eps: float) -> Tensor:
    """Soft Dice loss, 1 - (2 Σpt + eps) / (Σp + Σt + eps) (Milletari et al. 2016, with plain sums).

    The sums go over the whole batch, so that an image without foreground adds its false positives
    and nothing else. A batch without any foreground gives 1 - eps / (Σp + eps), zero where the
    prediction is empty too.
    """
    p, t = logits.float().sigmoid(), target.float()
    return 1 - (2 * (p * t).sum() + eps) / (p.sum() + t.sum() + eps)


# ---- of any reading and weights ----


def _over(x: Tensor) -> list[int]:
    """All axes but the channels."""
    return [axis for axis in range(x.dim()) if axis != 1]


def _as_column(weight: Tensor, like: Tensor) -> Tensor:
    """(C,) -> (1, C, 1, …), where `like` (N, C, …) lies."""
    return weight.to(like.device).view(1, -1, *[1] * (like.dim() - 2))


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Mean of values (N, C, …) or (C,), weighted by class."""
    if weight is None:
        return values.mean()
    if values.dim() == 1:
        weight = weight.to(values.device)
    else:
        weight = _as_column(weight, values).expand_as(values)
    return (values * weight).sum() / weight.sum()


def _log_complements(x: Tensor) -> Tensor:
    """log(1 - p) of each class of a softmax over logits (N, C, …).

    Of the likeliest class from the logits of the others, which stays exact where p rounds to 1.
    """
    log_p = x.log_softmax(dim=1)
    top = torch.zeros_like(x, dtype=torch.bool).scatter_(1, x.argmax(dim=1, keepdim=True), True)
    others = x.masked_fill(top, -math.inf).logsumexp(dim=1, keepdim=True)
    of_top = others - x.logsumexp(dim=1, keepdim=True)
    of_others = torch.log1p(-log_p.masked_fill(top, -1.0).exp())  # there p is at most a half
    return torch.where(top, of_top, of_others)


def cross_entropies(logits: Tensor, reading: Reading) -> tuple[Tensor, Tensor]:
    """(-log p, -log(1 - p)) of each output, in single precision."""
    x = logits.float()
    if reading == "softmax":
        return -x.log_softmax(dim=1), -_log_complements(x)
    return F.softplus(-x), F.softplus(x)


def binary(
    logits: Tensor, t: Tensor, counted: Tensor | None, reading: Reading, w: Tensor | None
) -> Tensor:
    """BCE of each class against the rest, mean over pixels and classes; see `bce`.

    A class without targets gives -log(1 - p). Of a softmax, `weight` weighs a pixel by its class.
    """
    counted, w = _by_target(t, counted, reading, w)
    hit, miss = cross_entropies(logits, reading)
    t = t.float()
    return _mean_counted(t * hit + (1 - t) * miss, counted, w)


def squares(
    logits: Tensor, t: Tensor, counted: Tensor | None, reading: Reading, w: Tensor | None
) -> Tensor:
    """Mean squared error (p - t)², mean over pixels and outputs (Brier 1950 of probabilities).

    Of a network that ends in nothing, p is its output as it is. An empty target gives p². Of a
    softmax, `weight` weighs a pixel by its class.
    """
    counted, w = _by_target(t, counted, reading, w)
    return _mean_counted((probabilities(logits, reading) - t.float()) ** 2, counted, w)


def _by_target(
    t: Tensor, counted: Tensor | None, reading: Reading, w: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The weight of each pixel's own class as part of what counts, where classes exclude each
    other: there a weight of the columns would weigh what is in all of them."""
    if w is None or reading != "softmax":
        return counted, w
    weights = (t * _as_column(w, t)).sum(dim=1, keepdim=True)
    return weights if counted is None else counted * weights, None


def _mean_counted(values: Tensor, counted: Tensor | None, weight: Tensor | None) -> Tensor:
    if counted is None:
        return _mean(values, weight)
    w = counted.expand_as(values).float()
    if weight is not None:
        w = w * _as_column(weight, values)
    return (values * w).sum() / w.sum().clamp(min=torch.finfo(torch.float32).tiny)


def overlap(
    logits: Tensor,
    t: Tensor,
    counted: Tensor | None,
    reading: Reading,
    w: Tensor | None,
    eps: float,
    union: bool,
) -> Tensor:
    """Mean over the classes of 1 - Dice, or with `union` of 1 - Jaccard, soft.

    Dice is (2 Σpt + eps) / (Σp + Σt + eps), Jaccard (Σpt + eps) / (Σp + Σt - Σpt + eps) (Rahman and
    Wang 2016). A class that the batch lacks adds 1 - eps / (Σp + eps).
    """
    p = probabilities(logits, reading)
    if counted is not None:
        p, t = p * counted, t * counted
    both, sums = (p * t).sum(_over(p)), p.sum(_over(p)) + t.sum(_over(p))
    score = (both + eps) / (sums - both + eps) if union else (2 * both + eps) / (sums + eps)
    return _mean(1 - score, w)


def _hardness(entropy: Tensor) -> Tensor:
    """1 - p from -log p; above zero, where a power below 1 has no slope."""
    return (-torch.expm1(-entropy)).clamp(min=torch.finfo(torch.float32).tiny)


def focal(
    logits: Tensor,
    t: Tensor,
    counted: Tensor | None,
    reading: Reading,
    w: Tensor | None,
    gamma: float,
) -> Tensor:
    """Focal loss (Lin et al. 2017), mean over pixels.

    Softmax: -Σ t (1 - p)^gamma log p. Sigmoid: the same of p and of 1 - p, mean over the outputs,
    too. Without `weight` it is cross-entropy for gamma 0. An empty target is a target like any.
    """
    t = t.float()
    hit, miss = cross_entropies(logits, reading)
    hit = t * _hardness(hit) ** gamma * hit
    if reading == "softmax":
        return _weighted_pixels(hit, t, counted, w)
    return _mean_counted(hit + (1 - t) * _hardness(miss) ** gamma * miss, counted, w)


def _weighted_pixels(values: Tensor, t: Tensor, counted: Tensor | None, w: Tensor | None) -> Tensor:
    """Σ w l / Σ w over pixels: as the weighted mean of torch's NLLLoss."""
    if w is not None:
        column = _as_column(w, values)
        values, t = values * column, t * column
    if counted is not None:
        values, t = values * counted, t * counted
    return values.sum() / t.sum().clamp(min=torch.finfo(torch.float32).tiny)


def likelihood(
    logits: Tensor, t: Tensor, counted: Tensor | None, reading: Reading, w: Tensor | None
) -> Tensor:
    """Negative log-likelihood -log p[target], mean over pixels, weighted as torch's NLLLoss: Σ w l
    over Σ w. Where all is background, the mean of its -log p."""
    hit, _ = cross_entropies(logits, reading)
    return _weighted_pixels(t * hit, t, counted, w)


def lovasz(
    logits: Tensor, t: Tensor, counted: Tensor | None, reading: Reading, w: Tensor | None
) -> Tensor:
    """Lovász extension of the Jaccard loss (Berman et al. 2018), over the batch.

    Sigmoid: the hinge 1 - x (2t - 1) of each output. Softmax: |t - p| of each class that the batch
    has. A class without a target gives the largest positive error; a batch of nothing but ignored
    pixels 0.
    """
    p = logits.float() if reading == "sigmoid" else probabilities(logits, reading)
    rows = []
    keep = None if counted is None else counted.flatten() > 0
    for errors_of, truth in zip(
        p.movedim(1, 0).flatten(1), t.movedim(1, 0).flatten(1), strict=True
    ):
        x, y = errors_of, truth.float()
        if keep is not None:
            x, y = x[keep], y[keep]
        if reading == "softmax" and not bool(y.any()):
            continue
        errors = 1 - x * (2 * y - 1) if reading == "sigmoid" else (y - x).abs()
        errors, order = errors.sort(descending=True)
        rows.append((errors.relu() * _lovasz_gradient(y[order])).sum())
    return torch.stack(rows).mean() if rows else p.sum() * 0


def _lovasz_gradient(truth: Tensor) -> Tensor:
    """How much the Jaccard loss grows with each further error, the largest first (n,) -> (n,)."""
    total = truth.sum()
    intersection = total - truth.cumsum(0)
    union = total + (1 - truth).cumsum(0)
    jaccard = 1 - intersection / union
    return torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])


def nll(logits: Tensor, target: Tensor) -> Tensor:
    """Negative log-likelihood, -log softmax(logits)[target], mean over all pixels or samples.

    Where all is background, the mean of its -log p.
    """
    return F.cross_entropy(logits.float(), indices(target))


# ---- Dice and its relatives, as the published systems for volumes define them ----


def _sums_of_classes(
    logits: Tensor, t: Tensor, counted: Tensor | None, reading: Reading
) -> tuple[Tensor, Tensor, Tensor]:
    """(Σpt, Σp, Σt) of each class over the batch and space, each (C,)."""
    p, t = probabilities(logits, reading), t.float()
    if counted is not None:
        p, t = p * counted, t * counted
    return (p * t).sum(_over(p)), p.sum(_over(p)), t.sum(_over(p))


def dice_ce(
    logits: Tensor,
    t: Tensor,
    counted: Tensor | None,
    reading: Reading,
    _: Tensor | None,
    eps: float,
    first: int,
) -> Tensor:
    """Half of the mean of 1 - Dice, half cross-entropy (MLPerf Training, 3D U-Net).

    Dice is (2 Σpt + eps) / (Σp + Σt + eps) of each sample and class, sums over space; the mean goes
    over samples and the classes from `first` on. Cross-entropy goes over all classes, mean over the
    pixels of the batch; of a sigmoid it is binary, mean over the outputs, too.
    """
    p, truth = probabilities(logits, reading), t.float()
    if counted is not None:
        p, truth = p * counted, truth * counted
    p, truth = (x.reshape(*x.shape[:2], -1) for x in (p, truth))
    score = (2 * (p * truth).sum(-1) + eps) / (p.sum(-1) + truth.sum(-1) + eps)
    entropy = likelihood if reading == "softmax" else binary
    return 0.5 * ((1 - score[:, first:]).mean() + entropy(logits, t, counted, reading, None))


def adaptive_dice32(
    logits: Tensor,
    t: Tensor,
    counted: Tensor | None,
    reading: Reading,
    _: Tensor | None,
    eps: float,
) -> Tensor:
    """1 - Σ w d / (C / e), w = exp(-d), d = 2 (Σpt + eps) / (Σp + Σt + eps) of each class
    (TensorFlow's 3D U-Net).

    The gradient goes through w. Background counts. A class that is in neither has d = 2, as
    published, not 1.
    """
    both, predicted, true = _sums_of_classes(logits, t, counted, reading)
    d = 2 * (both + eps) / (predicted + true + eps)
    loss = 1 - ((-d).exp() * d).sum() * math.e / len(d)
    return loss if counted is None else loss * counted.any()


def log_dice(
    logits: Tensor,
    t: Tensor,
    counted: Tensor | None,
    reading: Reading,
    w: Tensor | None,
    eps: float,
) -> Tensor:
    """log(Σp + Σt + eps) - log(2 Σpt + eps), mean over classes (Intel's U-Net, eps 1)."""
    both, predicted, true = _sums_of_classes(logits, t, counted, reading)
    return _mean((predicted + true + eps).log() - (2 * both + eps).log(), w)


def tversky(
    logits: Tensor,
    t: Tensor,
    counted: Tensor | None,
    reading: Reading,
    w: Tensor | None,
    eps: float,
    alpha: float,
    beta: float,
) -> Tensor:
    """1 - (Σpt + eps) / (Σpt + alpha Σp(1 - t) + beta Σ(1 - p)t + eps), mean over classes (Salehi
    et al. 2017; TensorFlow's 3D U-Net has the same index, summed over classes)."""
    both, predicted, true = _sums_of_classes(logits, t, counted, reading)
    wrong = alpha * (predicted - both) + beta * (true - both)
    return _mean(1 - (both + eps) / (both + wrong + eps), w)


def generalized_dice(
    logits: Tensor,
    t: Tensor,
    counted: Tensor | None,
    reading: Reading,
    _: Tensor | None,
    eps: float,
) -> Tensor:
    """1 - (2 Σ w Σpt + eps) / (Σ w (Σp + Σt) + eps), the outer sums over classes, with
    w = 1 / ((Σt)² + eps) (Sudre et al. 2017).

    A class that the batch lacks has the largest w of the others: its own, 1 / eps, would drown
    them.
    """
    both, predicted, true = _sums_of_classes(logits, t, counted, reading)
    w = torch.where(true > 0, 1 / (true**2 + eps), 0)
    largest = w.max()
    w = torch.where(true > 0, w, torch.where(largest > 0, largest, 1.0))
    return 1 - (2 * (w * both).sum() + eps) / ((w * (predicted + true)).sum() + eps)


# ---- targets ----


def indices(target: Tensor) -> Tensor:
    """(N, 1, …) or (N,) -> class numbers (N, …) or (N,)."""
    return (target[:, 0] if target.dim() > 1 else target).long()


def one_hot(
    target: Tensor, classes: int, ignore_index: int | None, partial: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Class numbers -> whether a target is of each class (N, C, …), and (N, 1, …): 1 where it
    counts; None where all do. `partial`: there are targets that are not a number."""
    column = (target if target.dim() > 1 else target[:, None]).round()
    numbers = torch.arange(classes, device=target.device, dtype=column.dtype)
    hot = column == numbers.view(1, -1, *[1] * (column.dim() - 2))  # a whole volume may be large
    if ignore_index is None and not partial:
        return hot, None
    counted = ~column.isnan() if partial else torch.ones_like(column, dtype=torch.bool)
    if ignore_index is not None:
        counted = counted & (column != ignore_index)
    return hot, counted.float()


def build_loss(
    loss: Loss,
    outputs: int,
    task: Task | None = None,
    activation: str | None = None,
    partial: bool = False,
) -> LossFunction:
    """The function that a configuration's loss section names, for a network of so many outputs.

    `activation` is what the network ends in. `partial`: targets may be not a number, and then do
    not count. Raises InputError for what does not fit.
    """
    task = task or ("foreground" if outputs == 1 else "classes")
    reading = reading_of(activation, loss, outputs)
    _check(loss, outputs, task, reading)
    if (
        loss.weight is None and loss.ignore_index is None and not partial
    ):  # the everyday ones, without a one-hot
        if loss.function == "bce" and task in ("foreground", "channels") and reading == "sigmoid":
            return bce
        if loss.function == "dice" and task == "foreground" and reading == "sigmoid":
            return functools.partial(dice, eps=loss.eps)
        if loss.function == "nll" and reading == "softmax":
            return nll
    backgrounds = outputs > 1 and task in ("classes", "labels")
    first = 1 if backgrounds and not loss.include_background else 0
    functions: dict[str, Callable[..., Tensor]] = {
        "bce": binary,
        "mse": squares,
        "dice": functools.partial(overlap, eps=loss.eps, union=False),
        "jaccard": functools.partial(overlap, eps=loss.eps, union=True),
        "focal": functools.partial(focal, gamma=loss.gamma),
        "lovasz": lovasz,
        "nll": likelihood,
        "dice_ce": functools.partial(dice_ce, eps=loss.eps, first=first),
        "adaptive_dice32": functools.partial(adaptive_dice32, eps=loss.eps),
        "log_dice": functools.partial(log_dice, eps=loss.eps),
        "tversky": functools.partial(tversky, eps=loss.eps, alpha=loss.alpha, beta=loss.beta),
        "generalized_dice": functools.partial(generalized_dice, eps=loss.eps),
    }
    function = functions[loss.function]
    weighs = loss.weight is not None and "weight" in LOSS_FIELDS[loss.function]
    weight = torch.tensor(loss.weight) if weighs else None
    as_two = outputs == 1 and weight is not None and len(weight) == 2

    def compute(logits: Tensor, target: Tensor) -> Tensor:
        if task in ("foreground", "channels"):
            t, counted = target.float(), None
            if partial:
                counted, t = (~t[:, :1].isnan()).float(), t.nan_to_num(0)
            if not as_two:
                return function(logits, t, counted, reading, weight)
            pair = torch.cat([torch.zeros_like(logits), logits], dim=1)
            both = torch.cat([1 - t, t], dim=1)  # sigmoid(x) is the second of softmax(0, x)
            return function(pair, both, counted, "softmax", weight)
        t, counted = one_hot(target, outputs, loss.ignore_index, partial)
        return function(logits, t, counted, reading, weight)

    return compute


def _check(loss: Loss, outputs: int, task: Task, reading: Reading) -> None:
    name = loss.function
    accepted = LOSSES_OF_FOREGROUND if task in ("foreground", "channels") else LOSSES_OF_CLASSES
    if name not in accepted:
        what = {
            "foreground": "a network for foreground alone",
            "channels": "targets that are images",
        }.get(task, f"a network for {outputs} classes")
        raise InputError("loss.function", f"{name} does not fit {what}", ", ".join(accepted))
    if name == "nll" and reading != "softmax":
        found = "nll needs classes that exclude each other, but the network ends in sigmoid"
        raise InputError(
            "loss.function", found, "bce, dice, dice_ce, focal, …, or a softmax at its end"
        )
    if reading == "identity" and name != "mse":
        raise InputError("loss.function", f"{name} needs probabilities", "mse")
    if loss.weight is not None and "weight" in LOSS_FIELDS[name]:
        fitting = {outputs, 2} if task == "foreground" and reading == "sigmoid" else {outputs}
        if len(loss.weight) not in fitting:
            found = f"{len(loss.weight)} numbers for {outputs} outputs"
            raise InputError("loss.weight", found, " or ".join(map(str, sorted(fitting))))
    if loss.ignore_index is not None and task in ("foreground", "channels"):
        found = "there are no classes to ignore: the targets are no class numbers"
        raise InputError("loss.ignore_index", found, "leave it out")
