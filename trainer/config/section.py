"""What all sections of the configuration share: names in any case, checked keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, WithJsonSchema

from trainer.errors import InputError, nearest

OUT_OF_SCOPE = (
    *("wasserstein", "yolov3", "burgers_pde", "poisson2d_pde", "poisson3d_pde"),
    "pde",
)
"""Names of the language for differential equations, GANs and object detection."""


def known_name(kind: str, name: Any, built: tuple[str, ...]) -> str:
    """`name` in lower case if it is in `built`; else an InputError that says what to use."""
    if not isinstance(name, str):
        raise InputError(kind, f"{name!r} is not a name", ", ".join(built))
    lower = name.lower()
    if lower in built:
        return lower
    if lower in OUT_OF_SCOPE:
        raise InputError(kind, f"'{name}' is not in the scope of this program", ", ".join(built))
    raise InputError(kind, f"unknown name '{name}'{nearest(name, built)}", ", ".join(built))


def any_case(names: Sequence[str]) -> WithJsonSchema:
    """In the JSON Schema: the names, which an editor offers, in any case."""
    letters = "|".join("".join(f"[{c}{c.upper()}]" if c.isalpha() else c for c in n) for n in names)
    return WithJsonSchema(
        {"type": "string", "anyOf": [{"enum": list(names)}, {"pattern": f"^({letters})$"}]}
    )


def one_of(kind: str, built: tuple[str, ...]) -> BeforeValidator:
    def check(value: Any) -> str:
        try:
            return known_name(kind, value, built)
        except InputError as error:
            raise ValueError(f"{error.found}; accepted: {error.accepted}") from None

    return BeforeValidator(check)


class Section(BaseModel):
    """A JSON object of the language: its keys are checked, its values are not converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
