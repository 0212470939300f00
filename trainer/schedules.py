"""Learning rate schedules by name, stepped at the end of each epoch.

Each is a factor of the whole learning rate in closed form; several are multiplied. e counts the
epochs that ended: 0 in the first.

    exponential  gamma ** e
    step         gamma ** (e // step_size)
    multistep    gamma ** (how many of the milestones are <= e)
    warmup       start_factor + (1 - start_factor) * min(1, e / num_epochs)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from trainer.config import LearningRateSchedule

FACTORS: dict[str, Callable[[LearningRateSchedule, int], float]] = {
    "exponential": lambda s, e: s.gamma**e,
    "step": lambda s, e: s.gamma ** (e // s.step_size),
    "multistep": lambda s, e: s.gamma ** sum(milestone <= e for milestone in s.milestones),
    "warmup": lambda s, e: s.start_factor + (1 - s.start_factor) * min(1.0, e / s.num_epochs),
}


def factor(schedules: Sequence[LearningRateSchedule], ended: int) -> float:
    """The share of the whole rate after so many epochs."""
    product = 1.0
    for schedule in schedules:
        product *= FACTORS[schedule.type](schedule, ended)
    return product


def build_schedule(
    optimizer: torch.optim.Optimizer, schedules: Sequence[LearningRateSchedule]
) -> LRScheduler | None:
    """The schedules that `lr_scheduler` names as one; None for a constant rate."""
    if not schedules:
        return None
    return LambdaLR(optimizer, lambda ended: factor(schedules, ended))
