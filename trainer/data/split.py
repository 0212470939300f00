"""The split file: which images train, validate and test, and what the masks' values mean.

Written once by a study (`runs/<study>/split.json`) and read by every trial. The names of a part
are file names in the configuration's input folder (`training`, `validation`) or test input folder
(`test`). Torch-free.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from trainer.config import read_json
from trainer.data.folders import Pair
from trainer.data.masks import Masks
from trainer.errors import InputError


class Parts(BaseModel):
    """File names of images."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    training: list[str]
    validation: list[str]
    test: list[str]


class Split(BaseModel):
    """The content of a split file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = 1
    seed: int
    select_on: Literal["validation", "test"]
    metric: Literal["accuracy", "foreground_dice", "iou"] = "accuracy"
    """What makes an epoch the best one, and a trial."""
    group_by: str | None = None
    parts: Parts
    masks: Masks
    near_twins: list[str] = []
    """Test images that have a near-identical image among the training images."""


def read_split(path: str | Path) -> Split:
    """The split file at `path`; raises InputError."""
    content: Any = read_json(path, "split file")
    try:
        split = Split.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}, {key}", first["msg"], "a split.json of a study") from None
    if split.schema_version != 1:
        raise InputError(str(path), f"schema_version is {split.schema_version}", "1")
    return split


def chosen(pairs: list[Pair], names: list[str], where: str) -> list[Pair]:
    """The pairs of the given names, in the order of `pairs`; InputError for a name not there."""
    wanted = set(names)
    missing = sorted(wanted - {pair.name for pair in pairs})
    if missing:
        raise InputError(
            where,
            f"names {len(missing)} images that are not in the data: {', '.join(missing[:5])}",
            "a split that was drawn from this data",
        )
    return [pair for pair in pairs if pair.name in wanted]
