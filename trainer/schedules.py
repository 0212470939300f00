"""Learning rate schedules by name, stepped at the end of each epoch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.optim.lr_scheduler import ExponentialLR, LRScheduler

from trainer.config import LearningRateSchedule


def build_schedule(
    optimizer: torch.optim.Optimizer, schedule: LearningRateSchedule | None
) -> LRScheduler | None:
    """The schedule that `lr_scheduler` names; None for a constant rate.

    exponential: rate of epoch e (from 1) = learning_rate * gamma ** (e - 1).
    """
    if schedule is None:
        return None
    builders: dict[str, Callable[[], LRScheduler]] = {
        "exponential": lambda: ExponentialLR(optimizer, schedule.gamma),
    }
    return builders[schedule.type]()
