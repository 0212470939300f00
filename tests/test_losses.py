"""Losses and optimizers against closed forms in numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from trainer.config import Loss, Optimizer
from trainer.errors import InputError
from trainer.losses import bce, build_loss, dice
from trainer.networks.smp import import_smp
from trainer.optimizers import build_optimizer, step

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


def test_lars_adapts_without_weight_decay() -> None:
    parameter = nn.Parameter(torch.full((4,), 2.0))
    settings = Optimizer(type="LARS", learning_rate=1.0, eta=0.01)
    optimizer = build_optimizer([parameter], settings)
    (parameter * 50).sum().backward()  # |w| = 4, |g| = 100: a step of 0.01 * 4 / 100 * 50
    optimizer.step()
    assert parameter.tolist() == pytest.approx([2 - 0.02] * 4, rel=1e-5)


def test_lamb_does_not_clip_and_adapts_without_weight_decay() -> None:
    parameter = nn.Parameter(torch.full((4,), 2.0))
    optimizer = build_optimizer([parameter], Optimizer(type="lamb", learning_rate=0.1))
    (parameter * 50).sum().backward()  # Adam's first step is 1 each; |w| / |1111| = 2
    optimizer.step()
    assert parameter.tolist() == pytest.approx([2 - 0.1 * 2] * 4, rel=1e-5)


def test_hessian_solves_a_quadratic_in_one_step() -> None:
    parameter = nn.Parameter(torch.tensor([3.0, -2.0]))
    scale = torch.tensor([1.0, 50.0])
    optimizer = build_optimizer([parameter], Optimizer(type="Hessian", max_iterations=50))

    def compute() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (scale * (parameter - 1) ** 2).sum()
        loss.backward()
        return loss

    assert float(step(optimizer, compute, again=False).detach()) == pytest.approx(4 + 450)
    assert parameter.tolist() == pytest.approx([1, 1], abs=1e-4)


def test_a_step_that_is_interrupted_leaves_the_parameters_as_they_were() -> None:
    parameter = nn.Parameter(torch.tensor([3.0, -2.0]))
    optimizer = build_optimizer([parameter], Optimizer(type="Hessian"))
    calls = []

    def compute() -> torch.Tensor:
        calls.append(parameter.detach().clone())
        if len(calls) == 3:
            raise KeyboardInterrupt
        optimizer.zero_grad()
        loss = (parameter**4).sum()
        loss.backward()
        return loss

    with pytest.raises(KeyboardInterrupt):
        step(optimizer, compute, again=False)
    assert not torch.equal(calls[-1], calls[0]) and torch.equal(parameter, calls[0])


def test_nothing_trainable_is_told() -> None:
    frozen = nn.Parameter(torch.ones(1), requires_grad=False)
    with pytest.raises(InputError, match="no parameter is trainable"):
        build_optimizer([frozen], Optimizer(type="adam"))


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


def test_a_loss_that_does_not_fit_the_classes() -> None:
    with pytest.raises(InputError, match=r"loss.function: nll does not fit"):
        build_loss(Loss(function="nll"), 1)


CLASSES = 4
SCORES = torch.from_numpy(RNG.normal(0, 2, (3, CLASSES, 5, 6)).astype(np.float32))
NUMBERS = torch.from_numpy(RNG.integers(0, CLASSES, (3, 1, 5, 6)).astype(np.float32))
HOT = F.one_hot(NUMBERS[:, 0].long(), CLASSES).movedim(-1, 1).float()
WEIGHT = [0.5, 2.0, 1.0, 0.0]


def value(logits: torch.Tensor, target: torch.Tensor, end: str = "softmax", **loss: Any) -> float:
    built = build_loss(Loss(**loss), logits.shape[1], activation=end)
    return float(built(logits, target))


def weighed(of_class: Any, weight: list[float] | None) -> float:
    return float(np.average(np.asarray(of_class), weights=weight))


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("end", ["softmax", "log_softmax", "sigmoid"])
@pytest.mark.parametrize("name", ["dice", "jaccard"])
def test_overlaps_of_classes_equal_their_formulas(
    name: str, end: str, weight: list[float] | None
) -> None:
    p = SCORES.sigmoid() if end == "sigmoid" else SCORES.softmax(1)
    both, sums = (p * HOT).sum((0, 2, 3)), (p + HOT).sum((0, 2, 3))
    top, bottom = (2 * both, sums) if name == "dice" else (both, sums - both)
    of_class = 1 - (top + 1e-7) / (bottom + 1e-7)
    found = value(SCORES, NUMBERS, end, function=name, weight=weight, source=end)
    assert found == pytest.approx(weighed(of_class, weight), rel=1e-5)


@pytest.mark.parametrize("weight", [None, [1.0, 3.0, 0.5, 2.0]])
@pytest.mark.parametrize("ignored", [None, 2])
def test_nll_equals_torch(weight: list[float] | None, ignored: int | None) -> None:
    expected = F.nll_loss(
        SCORES.log_softmax(1),
        NUMBERS[:, 0].long(),
        weight=torch.tensor(weight) if weight else None,
        ignore_index=-100 if ignored is None else ignored,
    )
    found = value(SCORES, NUMBERS, function="nll", weight=weight, ignore_index=ignored)
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_nll_of_volumes_and_of_labels() -> None:
    volume, numbers = SCORES[..., None].expand(-1, -1, -1, -1, 7), NUMBERS[..., None]
    of_volume = value(volume, numbers.expand(-1, -1, -1, -1, 7), function="nll")
    assert of_volume == pytest.approx(value(SCORES, NUMBERS, function="nll"), rel=1e-6)
    labels = torch.tensor([0, 3, 1])
    built = build_loss(Loss(function="NLL"), CLASSES, "labels", "log_softmax")
    expected = F.cross_entropy(SCORES[:, :, 0, 0], labels)
    assert float(built(SCORES[:, :, 0, 0], labels)) == pytest.approx(float(expected), rel=1e-6)


def test_binary_cross_entropy_of_probabilities_that_exclude_each_other() -> None:
    p = SCORES.double().softmax(1)
    expected = F.binary_cross_entropy(p, HOT.double())
    assert value(SCORES, NUMBERS, function="bce") == pytest.approx(float(expected), rel=1e-5)
    extreme = torch.tensor([[[[60.0]], [[-60.0]]]]).requires_grad_()
    loss = build_loss(Loss(function="bce"), 2, activation="softmax")(
        extreme, torch.zeros(1, 1, 1, 1)
    )
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert extreme.grad is not None and bool(extreme.grad.isfinite().all())


def test_two_weights_of_one_output_weigh_background_and_foreground() -> None:
    logits, target = torch.from_numpy(LOGITS), torch.from_numpy(TARGET).round()
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    w = torch.where(target == 1, 3.0, 0.5)
    expected = float((each * w).sum() / w.sum())
    found = value(logits, target, "sigmoid", function="focal", gamma=0.0, weight=[0.5, 3.0])
    assert found == pytest.approx(expected, rel=1e-5)
    found = value(logits, target, "sigmoid", function="bce", weight=[0.5, 3.0])
    assert found == pytest.approx(expected, rel=1e-5)
    found = value(logits, target, "sigmoid", function="mse", weight=[0.5, 3.0])
    squares = (logits.sigmoid() - target) ** 2
    assert found == pytest.approx(float((squares * w).sum() / w.sum()), rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_focal_equals_its_formula(gamma: float) -> None:
    p = SCORES.double().softmax(1).gather(1, NUMBERS.long())
    expected = (-((1 - p) ** gamma) * p.log()).mean()
    found = value(SCORES, NUMBERS, function="focal", gamma=gamma)
    assert found == pytest.approx(float(expected), rel=1e-5)
    logits, target = torch.from_numpy(LOGITS), torch.from_numpy(TARGET).round()
    q = torch.where(target == 1, logits.double().sigmoid(), (-logits.double()).sigmoid())
    expected = (-((1 - q) ** gamma) * q.log()).mean()
    found = value(logits, target, "sigmoid", function="focal", gamma=gamma)
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_lovasz_equals_another_implementation() -> None:
    smp = import_smp()
    expected = smp.losses.LovaszLoss("multiclass", per_image=False)(SCORES, NUMBERS[:, 0].long())
    assert value(SCORES, NUMBERS, function="lovasz") == pytest.approx(float(expected), rel=1e-5)
    logits, target = torch.from_numpy(LOGITS), torch.from_numpy(TARGET).round()
    expected = smp.losses.LovaszLoss("binary", per_image=False)(logits, target)
    found = value(logits, target, "sigmoid", function="lovasz")
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_mean_squared_error_of_what_the_network_gives() -> None:
    logits, target = torch.from_numpy(LOGITS), torch.from_numpy(TARGET)
    found = value(logits, target, "sigmoid", function="mse")
    assert found == pytest.approx(float(((logits.sigmoid() - target) ** 2).mean()), rel=1e-5)
    built = build_loss(Loss(function="MSE"), 1, "foreground", None)
    assert float(built(logits, target)) == pytest.approx(float(((logits - target) ** 2).mean()))
    found = value(SCORES, NUMBERS, function="mse")
    assert found == pytest.approx(float(((SCORES.softmax(1) - HOT) ** 2).mean()), rel=1e-5)


@pytest.mark.parametrize("name", ["dice", "jaccard", "focal", "lovasz"])
def test_ignored_targets_change_nothing(name: str) -> None:
    target = NUMBERS.clone()
    target[0] = 9  # no class of the network
    changed = SCORES.clone()
    changed[0] += 5
    built = build_loss(Loss(function=name, ignore_index=9), CLASSES, activation="softmax")
    assert float(built(changed, target)) == pytest.approx(float(built(SCORES, target)), rel=1e-6)
    rest = build_loss(Loss(function=name), CLASSES, activation="softmax")
    assert float(built(SCORES, target)) == pytest.approx(
        float(rest(SCORES[1:], NUMBERS[1:])), rel=1e-5
    )
    nothing = built(SCORES.clone().requires_grad_(), torch.full_like(target, 9))
    assert bool(nothing.isfinite())


@pytest.mark.parametrize("name", ["bce", "dice", "jaccard", "focal", "lovasz", "mse"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_empty_target_is_finite_and_has_a_gradient(name: str, dtype: torch.dtype) -> None:
    logits = torch.full((2, 1, 4, 4), 3.0, dtype=dtype, requires_grad=True)
    loss = build_loss(Loss(function=name), 1)(logits, torch.zeros(2, 1, 4, 4))
    loss.backward()
    assert loss.dtype == torch.float32 and bool(loss.isfinite()) and loss.item() > 0
    assert logits.grad is not None and bool(logits.grad.isfinite().all())


REFUSED: list[tuple[dict[str, Any], int, Any, str | None, str]] = [
    ({"function": "nll"}, 3, "classes", "sigmoid", "exclude each other"),
    ({"function": "dice", "weight": [1.0, 2.0]}, 3, "classes", "softmax", "2 numbers for 3"),
    ({"function": "dice", "ignore_index": 1}, 1, "foreground", "sigmoid", "no class numbers"),
    ({"function": "nll"}, 3, "channels", "sigmoid", "targets that are images"),
]


@pytest.mark.parametrize(("loss", "outputs", "task", "end", "words"), REFUSED)
def test_what_does_not_fit_is_told(
    loss: dict[str, Any], outputs: int, task: Any, end: str | None, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        build_loss(Loss(**loss), outputs, task, end)


@pytest.mark.parametrize("name", ["nll", "bce", "dice", "jaccard", "focal", "lovasz", "mse"])
def test_the_padding_of_blocks_changes_no_loss(name: str) -> None:
    """Targets that are not a number; what the network gives there is anything."""
    wide = F.pad(SCORES.detach(), [0, 3, 2, 0], value=7.0)
    target = F.pad(NUMBERS, [0, 3, 2, 0], value=math.nan)
    built = build_loss(Loss(function=name), CLASSES, activation="softmax", partial=True)
    whole = build_loss(Loss(function=name), CLASSES, activation="softmax")
    expected = float(whole(SCORES.detach(), NUMBERS))
    assert float(built(wide, target)) == pytest.approx(expected, rel=1e-5)
    if name == "nll":
        return
    logits, truth = torch.from_numpy(LOGITS), torch.from_numpy(TARGET).round()
    built = build_loss(Loss(function=name), 1, activation="sigmoid", partial=True)
    whole = build_loss(Loss(function=name), 1, activation="sigmoid")
    expected = float(whole(logits, truth))
    padded = [F.pad(logits, [1, 0], value=9.0), F.pad(truth, [1, 0], value=math.nan)]
    assert float(built(*padded)) == pytest.approx(expected, rel=1e-5)


def test_binary_cross_entropy_of_a_softmax_is_exact_where_it_is_sure_and_wrong() -> None:
    logits = torch.tensor([[[[40.0]], [[0.0]], [[-5.0]]]], requires_grad=True)
    built = build_loss(Loss(function="bce"), 3, activation="softmax")
    loss = built(logits, torch.full((1, 1, 1, 1), 1.0))
    loss.backward()
    others = math.log(1 + math.exp(-5))  # of the two that are not the likeliest
    assert float(loss.detach()) == pytest.approx((40 - others + 40) / 3, rel=1e-5)
    assert logits.grad is not None
    assert float(logits.grad[0, 0, 0, 0]) == pytest.approx(2 / 3, rel=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("outputs", [1, 2])
def test_focal_has_a_gradient_where_it_is_sure_and_right(gamma: float, outputs: int) -> None:
    logits = torch.full((1, outputs, 1, 1), -200.0)
    logits[0, -1] = 200.0
    logits.requires_grad_()
    end = "sigmoid" if outputs == 1 else "softmax"
    built = build_loss(Loss(function="focal", gamma=gamma), outputs, activation=end)
    built(logits, torch.ones(1, 1, 1, 1)).backward()
    assert logits.grad is not None and bool(logits.grad.isfinite().all())
