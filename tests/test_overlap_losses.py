"""Dice and its relatives: the published systems' numbers, and closed forms in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from trainer.config import OVERLAP_LOSSES, Loss
from trainer.losses import build_loss

Array = NDArray[np.float64]
RNG = np.random.default_rng(7)
LOGITS = RNG.normal(0, 2, (2, 3, 3, 4, 5))
NUMBERS = RNG.integers(0, 3, (2, 1, 3, 4, 5)).astype(np.float64)
ONE_LOGIT = RNG.normal(0, 2, (2, 1, 3, 4, 5))
FOREGROUND = RNG.integers(0, 2, (2, 1, 3, 4, 5)).astype(np.float64)
BATCH = (0, 2, 3, 4)
"""All axes but the classes."""


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def truth(numbers: Array, classes: int) -> Array:
    """(N, 1, …) -> (N, C, …); of one class, the target itself."""
    if classes == 1:
        return numbers
    return np.concatenate([numbers == c for c in range(classes)], 1).astype(np.float64)


def entropy(p: Array, t: Array) -> float:
    if p.shape[1] == 1:
        return float(-(t * np.log(p) + (1 - t) * np.log(1 - p)).mean())
    return float(-(t * np.log(p)).sum(1).mean())


def of_dice_ce(p: Array, t: Array, eps: float = 1e-6, background: bool = False) -> float:
    space = (2, 3, 4)
    d = (2 * (p * t).sum(space) + eps) / (p.sum(space) + t.sum(space) + eps)
    kept = d if background or p.shape[1] == 1 else d[:, 1:]
    return 0.5 * (float((1 - kept).mean()) + entropy(p, t))


def of_adaptive_dice32(p: Array, t: Array, eps: float = 1e-7) -> float:
    d = 2 * ((p * t).sum(BATCH) + eps) / ((p + t).sum(BATCH) + eps)
    return float(1 - (np.exp(-d) * d).sum() / (len(d) * np.exp(-1)))


def of_log_dice(p: Array, t: Array, eps: float = 1.0) -> float:
    both, sums = (p * t).sum(BATCH), (p + t).sum(BATCH)
    return float((-np.log(2 * both + eps) + np.log(sums + eps)).mean())


def of_tversky(
    p: Array, t: Array, eps: float = 1e-7, alpha: float = 0.3, beta: float = 0.7
) -> float:
    both = (p * t).sum(BATCH)
    false_positive, false_negative = (p * (1 - t)).sum(BATCH), ((1 - p) * t).sum(BATCH)
    index = (both + eps) / (both + alpha * false_positive + beta * false_negative + eps)
    return float((1 - index).mean())


def of_generalized_dice(p: Array, t: Array, eps: float = 1e-7) -> float:
    w = 1 / (t.sum(BATCH) ** 2 + eps)
    both, sums = (p * t).sum(BATCH), (p + t).sum(BATCH)
    return float(1 - (2 * (w * both).sum() + eps) / ((w * sums).sum() + eps))


CLOSED_FORMS: dict[str, Callable[..., float]] = {
    "dice_ce": of_dice_ce,
    "adaptive_dice32": of_adaptive_dice32,
    "log_dice": of_log_dice,
    "tversky": of_tversky,
    "generalized_dice": of_generalized_dice,
}


def loss_of(logits: Any, target: Any, **keys: Any) -> torch.Tensor:
    x, y = torch.as_tensor(logits), torch.as_tensor(target)
    return build_loss(Loss(**keys), x.shape[1])(x.float(), y.float())


def reading(logits: Array) -> Array:
    return sigmoid(logits) if logits.shape[1] == 1 else softmax(logits)


def test_every_loss_has_its_closed_form() -> None:
    assert set(CLOSED_FORMS) == set(OVERLAP_LOSSES)


BOTH = [(LOGITS, NUMBERS), (ONE_LOGIT, FOREGROUND)]


@pytest.mark.parametrize(("logits", "target"), BOTH, ids=["classes", "foreground"])
@pytest.mark.parametrize("name", OVERLAP_LOSSES)
def test_losses_equal_their_closed_forms(name: str, logits: Array, target: Array) -> None:
    expected = CLOSED_FORMS[name](reading(logits), truth(target, logits.shape[1]))
    assert float(loss_of(logits, target, function=name)) == pytest.approx(expected, rel=1e-5)
    closed = CLOSED_FORMS[name](reading(logits), truth(target, logits.shape[1]), eps=0.3)
    assert float(loss_of(logits, target, function=name, eps=0.3)) == pytest.approx(closed, rel=1e-5)


@pytest.mark.parametrize(("logits", "target"), BOTH, ids=["classes", "foreground"])
@pytest.mark.parametrize("name", OVERLAP_LOSSES)
def test_gradients_equal_finite_differences(name: str, logits: Array, target: Array) -> None:
    x = torch.tensor(logits, dtype=torch.float32, requires_grad=True)
    loss_of(x, target, function=name).backward()
    assert x.grad is not None
    t, h = truth(target, logits.shape[1]), 1e-5
    for place in np.random.default_rng(1).permutation(logits.size)[:25]:
        index = np.unravel_index(place, logits.shape)
        ends = []
        for shift in (h, -h):
            moved = logits.copy()
            moved[index] += shift
            ends.append(CLOSED_FORMS[name](reading(moved), t))
        slope = (ends[0] - ends[1]) / (2 * h)
        assert float(x.grad[index]) == pytest.approx(slope, rel=2e-4, abs=2e-8)


def test_dice_ce_has_the_published_value() -> None:
    """Zero logits where all is background: 0.5 (1 + ln 3)."""
    value = loss_of(np.zeros((2, 3, 8, 8, 8)), np.zeros((2, 1, 8, 8, 8)), function="dice_ce")
    assert float(value) == pytest.approx(1.049306, abs=1e-6)


def test_background_counts_in_the_dice_part_alone_where_asked() -> None:
    p, t = softmax(LOGITS), truth(NUMBERS, 3)
    with_it = loss_of(LOGITS, NUMBERS, function="dice_ce", include_background=True)
    assert float(with_it) == pytest.approx(of_dice_ce(p, t, background=True), rel=1e-5)
    without = float(loss_of(LOGITS, NUMBERS, function="dice_ce"))
    dices = [of_dice_ce(p, t, background=kept) - entropy(p, t) / 2 for kept in (True, False)]
    assert float(with_it) - without == pytest.approx(dices[0] - dices[1], rel=1e-4)


def with_scores(scores: list[float]) -> tuple[Array, Array]:
    """Outputs, each with a sigmoid of its own, and targets of one voxel, with these Dice."""
    # The target is 1, so that d is 2 p / (p + 1).
    p = np.array([d / (2 - d) for d in scores])[None, :, None, None, None]
    p = p.clip(1e-12, 1 - 1e-12)
    return np.log(p / (1 - p)), np.ones_like(p)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ((0.5, 0.5, 0.5), 0.175639),
        ((1.0, 1.0, 0.0), 1 / 3),
        ((0.9, 0.8, 0.3), 0.141366),
        ((1.0, 1.0, 1.0), 0.0),
        ((0.0, 0.0, 0.0), 1.0),
    ],
)
def test_adaptive_dice_has_the_published_values(scores: tuple[float, ...], expected: float) -> None:
    logits, target = with_scores(list(scores))
    built = build_loss(Loss(function="adaptive_dice32"), 3, "channels", "sigmoid")
    found = built(torch.tensor(logits).float(), torch.tensor(target).float())
    assert float(found) == pytest.approx(expected, abs=1e-6)


def test_adaptive_dice_of_a_class_that_is_in_neither() -> None:
    """Its d is 2: 0.088080 where the two others are perfect."""
    logits = torch.full((1, 3, 2, 2, 2), -200.0)
    numbers = torch.zeros(1, 1, 2, 2, 2)
    numbers[..., 0] = 1
    logits.scatter_(1, numbers.long(), 200.0)
    assert float(loss_of(logits, numbers, function="adaptive_dice32")) == pytest.approx(
        0.088080, abs=1e-6
    )


def test_log_dice_is_the_logarithm_of_the_smoothed_dice() -> None:
    p = sigmoid(ONE_LOGIT)
    smoothed = (2 * (p * FOREGROUND).sum() + 1) / ((p + FOREGROUND).sum() + 1)
    found = float(loss_of(ONE_LOGIT, FOREGROUND, function="log_dice"))
    assert found == pytest.approx(-math.log(smoothed), rel=1e-5)
    empty = loss_of(np.full((1, 1, 4, 4), -200.0), np.zeros((1, 1, 4, 4)), function="log_dice")
    assert float(empty) == 0


def test_tversky_counts_false_positives_by_alpha_and_false_negatives_by_beta() -> None:
    sure = np.array([200.0, 200.0, -200.0, -200.0]).reshape(1, 1, 1, 1, 4)
    target = np.array([1.0, 0.0, 1.0, 0.0]).reshape(1, 1, 1, 1, 4)  # one hit, one of each wrong
    for alpha, beta in ((0.3, 0.7), (1.0, 0.0), (0.0, 2.0)):
        found = loss_of(sure, target, function="tversky", alpha=alpha, beta=beta)
        assert float(found) == pytest.approx(1 - 1 / (1 + alpha + beta), rel=1e-5)
    half = loss_of(LOGITS, NUMBERS, function="tversky", alpha=0.5, beta=0.5, eps=1e-7)
    assert float(half) == pytest.approx(
        float(loss_of(LOGITS, NUMBERS, function="dice", eps=1e-7)), rel=1e-5
    )
    with pytest.raises(ValueError, match="alpha or a beta above 0"):
        Loss(function="tversky", alpha=0.0, beta=0.0)


def test_generalized_dice_is_not_drowned_by_a_class_that_the_batch_lacks() -> None:
    right, wrong = torch.zeros(1, 3, 4, 4, 4), torch.zeros(1, 1, 4, 4, 4)
    numbers = torch.zeros_like(wrong)
    numbers[..., :2] = 1
    right.scatter_(1, numbers.long(), 12.0)
    assert float(loss_of(right, numbers, function="generalized_dice")) < 0.001
    swapped = loss_of(right, 1 - numbers, function="generalized_dice")
    assert float(swapped) > 0.99


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("name", OVERLAP_LOSSES)
def test_sure_logits_in_half_precision_are_finite(
    name: str, outputs: int, dtype: torch.dtype
) -> None:
    for scale, label in ((100.0, 0), (-100.0, 0), (100.0, 1), (-100.0, 1), (0.0, 0)):
        logits = torch.full((2, outputs, 4, 4, 4), scale, dtype=dtype)
        logits[:, 0] *= -1
        logits.requires_grad_()
        target = torch.full((2, 1, 4, 4, 4), float(label))  # other classes are in neither
        loss = build_loss(Loss(function=name), outputs)(logits, target)
        loss.backward()
        assert loss.dtype == torch.float32 and bool(loss.isfinite())
        assert logits.grad is not None and bool(logits.grad.isfinite().all())


@pytest.mark.parametrize("name", OVERLAP_LOSSES)
def test_padding_and_ignored_targets_do_not_count(name: str) -> None:
    x, y = torch.tensor(LOGITS).float(), torch.tensor(NUMBERS).float()
    expected = float(loss_of(x, y, function=name))
    wide = F.pad(x, [0, 3, 2, 0], value=7.0)
    for value, keys in ((math.nan, {}), (9.0, {"ignore_index": 9})):
        target = F.pad(y, [0, 3, 2, 0], value=value)
        built = build_loss(Loss(function=name, **keys), 3, partial=math.isnan(value))
        assert float(built(wide, target)) == pytest.approx(expected, rel=1e-5)
        nothing = x.clone().requires_grad_()
        loss = built(nothing, torch.full_like(y, value))
        loss.backward()
        assert float(loss.detach()) == 0
        assert nothing.grad is not None and not bool(nothing.grad.any())
    one, foreground = torch.tensor(ONE_LOGIT).float(), torch.tensor(FOREGROUND).float()
    built = build_loss(Loss(function=name), 1, partial=True)
    padded = [F.pad(one, [1, 0], value=9.0), F.pad(foreground, [1, 0], value=math.nan)]
    expected = float(loss_of(one, foreground, function=name))
    assert float(built(*padded)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["log_dice", "tversky"])
def test_weights_weigh_classes(name: str) -> None:
    p, t = softmax(LOGITS), truth(NUMBERS, 3)
    each = [CLOSED_FORMS[name](p[:, [c]], t[:, [c]]) for c in range(3)]
    weight = [0.5, 2.0, 1.0]
    found = float(loss_of(LOGITS, NUMBERS, function=name, weight=weight))
    assert found == pytest.approx(float(np.average(each, weights=weight)), rel=1e-5)


@pytest.mark.parametrize("name", OVERLAP_LOSSES)
def test_classes_of_whole_samples_have_these_losses_too(name: str) -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, 3.0]], requires_grad=True)
    built = build_loss(Loss(function=name), 3, "labels", "softmax")
    loss = built(logits, torch.tensor([0, 2]))
    loss.backward()
    cube = logits.detach()[..., None, None, None].double().numpy()
    numbers = np.array([0.0, 2.0]).reshape(2, 1, 1, 1, 1)
    if name != "generalized_dice":  # its class 1 is absent, which the closed form knows otherwise
        expected = CLOSED_FORMS[name](softmax(cube), truth(numbers, 3))
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert logits.grad is not None and bool(logits.grad.any())
