"""The split file: which images train, validate and test, and what the masks' values mean.

Written once by a study (`runs/<study>/split.json`) and read by every trial. The names of a part
are file names in the configuration's input folder (`training`, `validation`) or test input folder
(`test`); of arrays of slices the rows, like 000012. Torch-free.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainer.config import read_json
from trainer.data.masks import Masks
from trainer.data.slice_files import row_name
from trainer.errors import InputError


class _Named(Protocol):
    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=_Named)


RANGE = r"^\d{6}-\d{6}$"


class Parts(BaseModel):
    """File names of images; of slices their rows, as six digits."""

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
    patients: dict[str, dict[str, list[Annotated[str, Field(pattern=RANGE)]]]] = {}
    """Of slices, where it is known: the patients of each part, with their rows from first to last,
    like 000026-000051."""


def row_ranges(rows: Sequence[int]) -> list[str]:
    """Ascending rows as ranges: 3, 4, 5, 9 are 000003-000005 and 000009-000009."""
    starts = [row for n, row in enumerate(rows) if n == 0 or rows[n - 1] != row - 1]
    ends = [row for n, row in enumerate(rows) if n == len(rows) - 1 or rows[n + 1] != row + 1]
    return [f"{row_name(a)}-{row_name(b)}" for a, b in zip(starts, ends, strict=True)]


def patient_of(patients: dict[str, list[str]]) -> dict[str, str]:
    """The patient of each slice by its name, of one part of `Split.patients`."""
    return {
        row_name(row): patient
        for patient, ranges in patients.items()
        for told in ranges
        for row in range(int(told.partition("-")[0]), int(told.partition("-")[2]) + 1)
    }


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


def chosen(items: Sequence[T], names: list[str], where: str) -> list[T]:
    """The items of the given names, in the order of `items`; InputError for a name not there."""
    wanted = set(names)
    missing = sorted(wanted - {item.name for item in items})
    if missing:
        raise InputError(
            where,
            f"names {len(missing)} that are not in the data: {', '.join(missing[:5])}",
            "a split that was drawn from this data",
        )
    return [item for item in items if item.name in wanted]
