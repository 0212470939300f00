"""The learning rate at any moment of a training, in closed form.

Each schedule is a factor of `learning_rate`; several are multiplied. Nothing is remembered from one
moment to the next, so that a run that goes on has the rates of one that never stopped, and a
milestone within a warm-up acts after it, too. e counts the epochs that ended (0 in the first), s
the steps of the optimizer.

    exponential       gamma ** e
    step              gamma ** (e // step_size)
    multistep         gamma ** (how many of the milestones are <= e)
    warmup            start_factor + (1 - start_factor) * min(1, e / num_epochs)
    linearwarmup      the rate is init + (learning_rate - init) * min(1, (e + 1) / num_epochs), so
                      that epoch num_epochs has the whole rate (MLPerf Training, 3D U-Net)
    exponentialdecay  decay_rate ** (s / decay_steps), not in stairs (TensorFlow's ExponentialDecay)
    polynomial        (1 - e / epochs) ** power (nnU-Net; Isensee et al. 2021)
    cosine            (1 + cos(pi * e / epochs)) / 2 (Loshchilov and Hutter 2017)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from trainer.config import LearningRateSchedule, Optimizer


@dataclass(frozen=True)
class Moment:
    """Of a training of `epochs` epochs: how many of them ended, and the steps of the optimizer."""

    ended: int
    steps: int
    epochs: int
    learning_rate: float

    @property
    def left(self) -> float:
        """The share of the epochs that is still to come, from 1 to 0."""
        return max(0.0, 1 - self.ended / self.epochs)


def _linear_warmup(s: LearningRateSchedule, m: Moment) -> float:
    share = min(1.0, (m.ended + 1) / s.num_epochs)
    return (s.init_learning_rate + (m.learning_rate - s.init_learning_rate) * share) / (
        m.learning_rate
    )


FACTORS: dict[str, Callable[[LearningRateSchedule, Moment], float]] = {
    "exponential": lambda s, m: s.gamma**m.ended,
    "step": lambda s, m: s.gamma ** (m.ended // s.step_size),
    "multistep": lambda s, m: s.gamma ** sum(milestone <= m.ended for milestone in s.milestones),
    "warmup": lambda s, m: s.start_factor + (1 - s.start_factor) * min(1.0, m.ended / s.num_epochs),
    "linearwarmup": _linear_warmup,
    "exponentialdecay": lambda s, m: s.decay_rate ** (m.steps / (s.decay_steps or 1)),
    "polynomial": lambda s, m: m.left**s.power,
    "cosine": lambda s, m: (1 + math.cos(math.pi * (1 - m.left))) / 2,
}


def factor(
    schedules: Sequence[LearningRateSchedule],
    learning_rate: float,
    ended: int,
    steps: int,
    epochs: int,
) -> float:
    """The share of `learning_rate` after `ended` of `epochs` epochs and `steps` steps."""
    moment = Moment(ended, steps, epochs, learning_rate)
    product = 1.0
    for schedule in schedules:
        product *= FACTORS[schedule.type](schedule, moment)
    return product


class RateSchedule:
    """Sets the learning rate of an optimizer by its section of the configuration."""

    def __init__(self, optimizer: torch.optim.Optimizer, section: Optimizer, epochs: int) -> None:
        self._optimizer, self._section, self._epochs = optimizer, section, epochs
        self._schedules = section.schedules if section.type != "hessian" else []

    @property
    def rate(self) -> float:
        """As it is now."""
        return float(self._optimizer.param_groups[0]["lr"])

    @property
    def verbose(self) -> bool:
        """Whether a change is to be told."""
        return any(schedule.verbose for schedule in self._schedules)

    def set(self, ended: int, steps: int) -> float:
        """Sets the rate for the time after so many epochs and steps, and returns it."""
        if self._schedules:
            whole = self._section.learning_rate
            rate = whole * factor(self._schedules, whole, ended, steps, self._epochs)
            for group in self._optimizer.param_groups:
                group["lr"] = rate
        return self.rate
