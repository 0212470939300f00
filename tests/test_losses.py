"""Losses, optimizers and schedules against closed forms in numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from trainer.config import LearningRateSchedule, Loss, Optimizer
from trainer.errors import InputError
from trainer.losses import bce, build_loss, dice
from trainer.optimizers import build_optimizer
from trainer.schedules import build_schedule

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (3, 1, 5, 7)).astype(np.float32)
TARGET = RNG.random((3, 1, 5, 7)).astype(np.float32)
P = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))


def test_bce_equals_its_formula() -> None:
    expected = -np.mean(TARGET * np.log(P) + (1 - TARGET) * np.log(1 - P))
    value = bce(torch.from_numpy(LOGITS), torch.from_numpy(TARGET))
    assert float(value) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("eps", [1e-7, 1.0])
def test_dice_equals_its_formula_over_the_batch(eps: float) -> None:
    expected = 1 - (2 * (P * TARGET).sum() + eps) / (P.sum() + TARGET.sum() + eps)
    value = dice(torch.from_numpy(LOGITS), torch.from_numpy(TARGET), eps)
    assert float(value) == pytest.approx(expected, rel=1e-5)
    built = build_loss(Loss(function="dice", eps=eps), 1)
    assert float(built(torch.from_numpy(LOGITS), torch.from_numpy(TARGET))) == float(value)


@pytest.mark.parametrize(
    ("logit", "target", "expected"),
    [(-200.0, 0.0, 0.0), (200.0, 0.0, 1.0), (200.0, 1.0, 0.0), (-200.0, 1.0, 1.0)],
)
def test_dice_at_its_ends(logit: float, target: float, expected: float) -> None:
    logits = torch.full((2, 1, 4, 4), logit, requires_grad=True)
    value = dice(logits, torch.full((2, 1, 4, 4), target), 1e-7)
    value.backward()
    assert float(value.detach()) == pytest.approx(expected, abs=1e-6)
    assert logits.grad is not None and bool(logits.grad.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("logit", "target"), [(100.0, 0.0), (-100.0, 1.0)])
def test_bce_is_exact_for_large_logits_in_half_precision(
    dtype: torch.dtype, logit: float, target: float
) -> None:
    logits = torch.full((4,), logit, dtype=dtype, requires_grad=True)
    value = bce(logits, torch.full((4,), target))
    value.backward()
    assert value.dtype == torch.float32 and float(value.detach()) == 100.0
    assert logits.grad is not None and bool(logits.grad.isfinite().all())


def test_names_build_their_losses() -> None:
    assert build_loss(Loss(function="BCE"), 1) is bce


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sgd", torch.optim.SGD),
        ("rmsprop", torch.optim.RMSprop),
        ("adagrad", torch.optim.Adagrad),
        ("adam", torch.optim.Adam),
        ("adamw", torch.optim.AdamW),
    ],
)
def test_every_optimizer_has_the_defaults_of_the_language(name: str, kind: type) -> None:
    built = build_optimizer([nn.Parameter(torch.ones(1))], Optimizer(type=name))
    assert type(built) is kind
    group = built.param_groups[0]
    assert group["lr"] == 0.01 and group["weight_decay"] == 0
    expected = {"momentum": 0, "betas": (0.9, 0.999), "alpha": 0.99, "lr_decay": 0}
    for key in expected.keys() & group.keys():
        assert group[key] == expected[key], key


STEPS: list[tuple[dict[str, Any], float]] = [
    ({"type": "sgd", "learning_rate": 0.1}, 1 - 0.1 * 2),
    ({"type": "sgd", "learning_rate": 0.1, "weight_decay": 0.5}, 1 - 0.1 * 2.5),
    ({"type": "adam", "learning_rate": 0.1}, 0.9),
    ({"type": "adamw", "learning_rate": 0.1, "weight_decay": 0.5}, 1 * (1 - 0.1 * 0.5) - 0.1),
    ({"type": "rmsprop", "learning_rate": 0.1, "alpha": 0.75}, 1 - 0.1 * 2 / math.sqrt(0.25 * 4)),
    ({"type": "adagrad", "learning_rate": 0.1}, 0.9),
]


@pytest.mark.parametrize(("settings", "expected"), STEPS)
def test_the_first_step_of_every_optimizer(settings: dict[str, Any], expected: float) -> None:
    parameter = nn.Parameter(torch.ones(1))
    optimizer = build_optimizer([parameter], Optimizer(**settings))
    (parameter**2).sum().backward()  # the gradient is 2
    optimizer.step()
    assert parameter.item() == pytest.approx(expected, abs=1e-6)


def test_momentum_and_nesterov_reach_sgd() -> None:
    settings = {"momentum": 0.9, "dampening": 0.0, "nesterov": True}
    built = build_optimizer([nn.Parameter(torch.ones(1))], Optimizer(type="sgd", **settings))
    assert {key: built.param_groups[0][key] for key in settings} == settings


def test_the_exponential_schedule() -> None:
    optimizer = build_optimizer(
        [nn.Parameter(torch.ones(1))], Optimizer(type="sgd", learning_rate=0.3)
    )
    schedule = build_schedule(optimizer, LearningRateSchedule(type="Exponential", gamma=0.9))
    assert schedule
    for epoch in range(1, 8):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.3 * 0.9 ** (epoch - 1))
        optimizer.step()
        schedule.step()
    assert build_schedule(optimizer, None) is None


def test_losses_of_several_classes_equal_their_formulas() -> None:
    rng = np.random.default_rng(4)
    logits = rng.normal(size=(2, 3, 4, 5))
    target = rng.integers(0, 3, (2, 1, 4, 5))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    t = np.stack([target[:, 0] == c for c in range(3)], axis=1)
    x, y = torch.from_numpy(logits), torch.from_numpy(target).float()
    nll = build_loss(Loss(function="NLL"), 3)(x, y)
    assert float(nll) == pytest.approx(-np.log(p[t.nonzero()]).mean(), rel=1e-5)
    dice = build_loss(Loss(function="dice", eps=1e-7), 3)(x, y)
    sums = [
        (2 * (p * t)[:, c].sum() + 1e-7) / (p[:, c].sum() + t[:, c].sum() + 1e-7) for c in range(3)
    ]
    assert float(dice) == pytest.approx(1 - np.mean(sums), rel=1e-5)


@pytest.mark.parametrize(("name", "classes"), [("bce", 3), ("nll", 1)])
def test_a_loss_that_does_not_fit_the_classes(name: str, classes: int) -> None:
    with pytest.raises(InputError, match=rf"loss.function: {name} does not fit"):
        build_loss(Loss(function=name), classes)
