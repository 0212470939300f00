"""What a study searches: the options' space, or that of a file (--space)."""

from __future__ import annotations

import math
from typing import Any

import optuna

from study.settings import Settings
from study.space_file import named
from trainer.config.override import value_at


def suggest(trial: optuna.Trial, settings: Settings) -> dict[str, Any]:
    """One point: optimizer, learning_rate (log-uniform), loss, in the published order; then
    lr_scheduler where several kinds are named. With --space: the keys of the file."""
    if settings.space:
        return settings.space.suggest(trial)
    point: dict[str, Any] = {
        "optimizer": trial.suggest_categorical("optimizer", settings.optimizers),
        "learning_rate": trial.suggest_float(
            "learning_rate", settings.lr_min, settings.lr_max, log=True
        ),
        "loss": trial.suggest_categorical("loss", settings.losses),
    }
    if len(settings.lr_schedules) > 1:
        point["lr_scheduler"] = trial.suggest_categorical("lr_scheduler", settings.lr_schedules)
    return point


def first_points(settings: Settings) -> list[dict[str, Any]]:
    """What is tried before the sampler chooses: a grid's every point, else `first_point`."""
    if settings.space and settings.space.grid:
        return settings.space.points()
    return [first_point(settings)]


def first_point(settings: Settings) -> dict[str, Any]:
    """Trial 0: what one would try by hand, so that the search has to beat it.

    The base configuration itself where there is one (--config, or that of prepared volumes), as far
    as it lies in the space. Else the first optimizer and loss that are named, and the rate in the
    middle of its range (on the logarithm): Adam, BCE and 1e-3 by default.
    """
    base = settings.base or {}
    if space := settings.space:
        known = {
            key: value_at({**base, "layers": settings.network}, key) for key in space.parameters
        }
        return {
            key: named(value) if space.holds(key, value) else space.usual(key)
            for key, value in known.items()
        }
    own = value_at(base, "optimizer.type")
    rate = value_at(base, "optimizer.learning_rate")
    loss = value_at(base, "loss.function")
    inside = isinstance(rate, float | int) and settings.lr_min <= rate <= settings.lr_max
    return {
        "optimizer": own.lower()
        if isinstance(own, str) and own.lower() in settings.optimizers
        else settings.optimizers[0],
        "learning_rate": rate if inside else math.sqrt(settings.lr_min * settings.lr_max),
        "loss": loss.lower()
        if isinstance(loss, str) and loss.lower() in settings.losses
        else settings.losses[0],
        **({"lr_scheduler": settings.lr_schedules[0]} if len(settings.lr_schedules) > 1 else {}),
    }
