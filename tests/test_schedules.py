"""Learning rates: each schedule against its table or closed form, and the rates of whole runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from trainer.config import Optimizer
from trainer.optimizers import build_optimizer
from trainer.schedules import RateSchedule

Build = Callable[..., dict[str, Any]]
Train = Callable[..., Any]


def rates(
    schedules: Any, epochs: int, learning_rate: float = 1.0, per_epoch: int = 10
) -> list[float]:
    """The rate that each epoch of a run begins with."""
    section = Optimizer(type="sgd", learning_rate=learning_rate, lr_scheduler=schedules)
    optimizer = build_optimizer([nn.Parameter(torch.ones(1))], section)
    schedule = RateSchedule(optimizer, section, epochs)
    return [schedule.set(ended, ended * per_epoch) for ended in range(epochs)]


TABLES: list[tuple[list[dict[str, Any]], list[float]]] = [
    ([{"type": "Exponential", "gamma": 0.9}], [1, 0.9, 0.81, 0.729]),
    ([{"type": "Step", "gamma": 0.5, "step_size": 2}], [1, 1, 0.5, 0.5, 0.25, 0.25]),
    ([{"type": "MultiStep", "gamma": 0.1, "milestones": [1, 4]}], [1, 0.1, 0.1, 0.1, 0.01, 0.01]),
    ([{"type": "MultiStep", "gamma": 0.1, "milestones": [3]}], [1, 1, 1, 0.1, 0.1]),
    ([{"type": "Warmup", "num_epochs": 4, "start_factor": 0.2}], [0.2, 0.4, 0.6, 0.8, 1, 1]),
    (
        [
            {"type": "Warmup", "num_epochs": 2, "start_factor": 0.5},
            {"type": "Exponential", "gamma": 0.9},
        ],
        [0.5, 0.75 * 0.9, 0.81, 0.729, 0.6561, 0.59049],
    ),
    ([{"type": "Polynomial", "power": 2.0}], [1, 0.5625, 0.25, 0.0625]),
    ([{"type": "Cosine"}], [1, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4]),
]


@pytest.mark.parametrize(("schedules", "expected"), TABLES)
def test_schedules_equal_their_closed_form(
    schedules: list[dict[str, Any]], expected: list[float]
) -> None:
    found = rates(schedules, len(expected), learning_rate=0.3)
    assert found == pytest.approx([0.3 * share for share in expected], abs=1e-9)


def test_the_linear_warmup_has_the_published_rates() -> None:
    """MLPerf's 3D U-Net: 0.8 after 200 epochs, from 1e-4."""
    warmup = {"type": "LinearWarmup", "num_epochs": 200, "init_learning_rate": 1e-4}
    found = rates(warmup, 250, learning_rate=0.8)
    assert found[0] == pytest.approx(0.0040995, abs=1e-9)
    assert found[99] == pytest.approx(0.40005, abs=1e-9)
    assert found[199:] == pytest.approx([0.8] * 51, abs=1e-9)


def test_a_milestone_within_a_warmup_is_not_lost() -> None:
    both = [
        {"type": "LinearWarmup", "num_epochs": 5, "init_learning_rate": 0.0},
        {"type": "MultiStep", "gamma": 0.1, "milestones": [3]},
    ]
    assert rates(both, 7) == pytest.approx([0.2, 0.4, 0.6, 0.08, 0.1, 0.1, 0.1], abs=1e-9)


@pytest.mark.parametrize(
    ("rate", "steps", "share", "table"),
    [
        (5e-4, 350, 0.2, {0: 5e-4, 50: 3.973e-4, 100: 3.157e-4, 240: 1.658e-4, 350: 1e-4}),
        (1e-4, 337, 0.5, {0: 1e-4, 337: 5e-5, 674: 2.5e-5}),
    ],
)
def test_the_exponential_decay_changes_at_each_step(
    rate: float, steps: int, share: float, table: dict[int, float]
) -> None:
    """Intel's U-Net, whose table has four digits, and TensorFlow's with half the rate an epoch."""
    decay = {"type": "ExponentialDecay", "decay_rate": share, "decay_steps": steps}
    section = Optimizer(type="adam", learning_rate=rate, lr_scheduler=decay)
    optimizer = build_optimizer([nn.Parameter(torch.ones(1))], section)
    schedule = RateSchedule(optimizer, section, 10)
    for done, expected in table.items():
        assert schedule.set(0, done) == pytest.approx(expected, rel=4e-4)
        assert schedule.rate == pytest.approx(rate * share ** (done / steps), abs=1e-12)
        assert optimizer.param_groups[0]["lr"] == schedule.rate
    assert schedule.set(0, steps // 2) == pytest.approx(rate * share ** (steps // 2 / steps))


def test_without_a_schedule_the_rate_stays() -> None:
    assert rates(None, 3, 0.3) == [0.3] * 3
    hessian = Optimizer(type="hessian", lr_scheduler={"type": "Step", "gamma": 0.5})
    optimizer = build_optimizer([nn.Parameter(torch.ones(1))], hessian)
    assert [RateSchedule(optimizer, hessian, 4).set(ended, ended) for ended in range(3)] == [1] * 3


def test_a_run_decays_at_each_step_and_tells_the_rate_of_each_epoch(
    train: Train, configuration: Build
) -> None:
    decay = {"type": "ExponentialDecay", "decay_rate": 0.25, "decay_steps": 8}
    content = configuration(num_epochs=3, optimizer={"lr_scheduler": decay})
    ended = train(content)
    assert ended.code == 0, ended.err
    images = ended.events[0]["images"]["training"]
    steps = math.ceil(images / content["neural_network"]["data"]["batch_size"])
    assert steps > 1
    found = [event["learning_rate"] for event in ended.epochs]
    assert found == pytest.approx([0.02 * 0.25 ** (steps * e / 8) for e in range(3)], abs=1e-9)
    last = torch.load(ended.folder / "checkpoints/last.pt", weights_only=True)
    group = last["training"]["optimizer"]["param_groups"][0]
    assert group["lr"] == pytest.approx(0.02 * 0.25 ** (steps * 3 / 8), abs=1e-9)
