"""A search space in a file, for --space: any keys of the configuration and of the network file.

    {"grid": true, "parameters": {
        "optimizer.learning_rate": [0.0001, 0.001],
        "layers.normalization": ["batch", "group"]}}

    {"parameters": {"optimizer.learning_rate": {"low": 1e-5, "high": 1e-2, "log": true},
                    "data.batch_size": {"low": 1, "high": 4}}}

A list is choices; low and high are a range, of whole numbers where both are whole. With `grid` each
combination of the choices runs once, in order. A choice may be a list or an object itself, like a
crop's size: a study knows it as its JSON text, which `meant` turns back.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Annotated, Any

import optuna
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from trainer.config import read_json
from trainer.errors import InputError, nearest

Choice = str | int | float | bool | list[Any] | dict[str, Any] | None


def named(choice: Any) -> str | int | float | bool | None:
    """A choice as a study records it: lists and objects as JSON."""
    return json.dumps(choice) if isinstance(choice, list | dict) else choice


class Range(BaseModel):
    """All numbers from low to high."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"low is {self.low:g}, high {self.high:g}; accepted: low below high")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log needs a low above 0, and no step")
        if self.step is not None and self.step <= 0:
            raise ValueError(f"step is {self.step:g}; accepted: above 0")
        return self

    @property
    def whole(self) -> bool:
        """Whether it is of whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)


class Space(BaseModel):
    """The file's content."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    grid: bool = False
    parameters: dict[str, Annotated[list[Choice], Field(min_length=1)] | Range] = Field(
        min_length=1
    )

    @model_validator(mode="after")
    def _grid_is_of_choices(self) -> Space:
        ranges = [key for key, one in self.parameters.items() if isinstance(one, Range)]
        if self.grid and ranges:
            raise ValueError(f"a grid has no ranges: {ranges[0]}; accepted: lists of values")
        return self

    def points(self) -> list[dict[str, Any]]:
        """Every combination of a grid, the last key changing fastest; none without `grid`."""
        if not self.grid:
            return []
        columns = [[*map(named, one)] for one in self.parameters.values() if isinstance(one, list)]
        return [dict(zip(self.parameters, row, strict=True)) for row in itertools.product(*columns)]

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """A point, by the sampler of the study."""
        point: dict[str, Any] = {}
        for key, one in self.parameters.items():
            if isinstance(one, list):
                point[key] = trial.suggest_categorical(key, [*map(named, one)])
            elif one.whole:
                step = int(one.step or 1)
                low, high = int(one.low), int(one.high)
                point[key] = trial.suggest_int(key, low, high, step=step, log=one.log)
            else:
                ends = float(one.low), float(one.high)
                point[key] = trial.suggest_float(key, *ends, step=one.step, log=one.log)
        return point

    def holds(self, key: str, value: Any) -> bool:
        """Whether a value of the base lies in the space."""
        one = self.parameters[key]
        if isinstance(one, list):
            return value in one
        kinds = int if one.whole else (int, float)
        if not isinstance(value, kinds) or isinstance(value, bool):
            return False
        steps = (value - one.low) / (one.step or (1 if one.whole else 1e-12))
        on_a_step = one.step is None or abs(steps - round(steps)) < 1e-9
        return one.low <= value <= one.high and on_a_step

    def usual(self, key: str) -> Any:
        """What to begin with where the base says nothing: the first choice, or the low end."""
        one = self.parameters[key]
        return named(one[0]) if isinstance(one, list) else one.low

    def ends(self, key: str) -> tuple[float, float]:
        """The least and the largest number that a key may have; (0, 0) where it has none."""
        one = self.parameters.get(key)
        if isinstance(one, Range):
            return float(one.low), float(one.high)
        numbers = [c for c in one or [] if isinstance(c, int | float) and not isinstance(c, bool)]
        return (float(min(numbers)), float(max(numbers))) if numbers else (0.0, 0.0)

    def meant(self, key: str, value: Any) -> Any:
        """What the configuration gets for a recorded value."""
        one = self.parameters.get(key)
        choices = (
            [choice for choice in one if named(choice) == value] if isinstance(one, list) else []
        )
        return choices[0] if choices else value

    @property
    def told(self) -> str:
        """In words, for the table."""
        parts = []
        for key, one in self.parameters.items():
            if isinstance(one, list):
                parts.append(f"{key}: {', '.join(map(str, one))}")
            else:
                how = ", log-uniform" if one.log else ""
                parts.append(f"{key}: {one.low:g} to {one.high:g}{how}")
        grid = f"grid of {len(self.points())}; " if self.grid else ""
        return grid + "; ".join(parts)


def _first(error: ValidationError, content: Any) -> ErrorDetails:
    """The finding to tell: an unknown key before a missing one, and of a value that is neither
    choices nor a range, what is wrong with what it looks like."""
    found = error.errors()
    unknown = [one for one in found if one["type"] == "extra_forbidden"]

    def meant(one: ErrorDetails) -> bool:
        loc = one["loc"]
        if len(loc) < 3 or loc[0] != "parameters":
            return True
        value = content["parameters"].get(loc[1])
        return ("Range" in str(loc[2])) == isinstance(value, dict)

    return next(one for one in [*unknown, *found] if meant(one))


def read_space(path: Path) -> Space:
    """The search space in the file at `path`; raises InputError."""
    content = read_json(path, "search space")
    try:
        return Space.model_validate(content)
    except ValidationError as error:
        first = _first(error, content)
        key = ".".join(str(part) for part in first["loc"] if "[" not in str(part))
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            known = list(Range.model_fields if "parameters" in first["loc"] else Space.model_fields)
            message = f"unknown key{nearest(str(first['loc'][-1]), known)}"
        accepted = '{"parameters": {"optimizer.learning_rate": [0.001, 0.01]}}'
        raise InputError(f"{path}{', ' + key if key else ''}", message, accepted) from None
