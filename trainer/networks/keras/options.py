"""The options (`config`) of one layer of a Keras network file, read and checked. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from trainer.errors import InputError, nearest

LARGEST = 2**31 - 1
"""Of any whole number in a network file."""

HARMLESS = frozenset(
    (
        *("name", "trainable", "dtype", "batch_input_shape", "batch_shape", "input_shape"),
        *("input_dtype", "sparse", "ragged", "optional", "seed", "implementation", "fused"),
        *("autocast", "build_config", "supports_masking", "batch_size", "activity_regularizer"),
    )
)
"""Keys that change nothing of what a layer computes here."""

REGULARIZERS = ("l1", "l2", "l1l2", "l1_l2")


class Options:
    """Reads one layer's options and remembers which; `done` refuses what nobody read.

    `where` names the layer in messages, `version` is the major version of Keras that wrote it.
    """

    def __init__(self, config: Mapping[str, Any], where: str, version: int = 2) -> None:
        self._config, self.where, self.version = config, where, version
        self._read: set[str] = set()

    def fault(self, key: str, found: str, accepted: str = "") -> InputError:
        """The error about one option, or about the layer (key "")."""
        return InputError(f"{self.where}, {key}" if key else self.where, found, accepted)

    def value(self, key: str, default: Any = None) -> Any:
        """As it stands there; the default for null, too."""
        self._read.add(key)
        found = self._config.get(key)
        return default if found is None else found

    def given(self, key: str) -> bool:
        """It is there and not null."""
        return self._config.get(key) is not None

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.value(key, default)
        if not isinstance(value, bool):
            raise self.fault(key, f"found {shown(value)}", "true or false")
        return value

    def whole(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A whole number."""
        return self._whole(key, self.value(key, default), least)

    def _whole(self, key: str, value: Any, least: int) -> int:
        plain = isinstance(value, int) and not isinstance(value, bool)
        if not plain or not least <= value <= LARGEST:
            raise self.fault(key, f"found {shown(value)}", f"a whole number from {least}")
        return int(value)

    def sizes(self, key: str, count: int, default: Any = None, least: int = 1) -> tuple[int, ...]:
        """One whole number a dimension; a single one stands for all."""
        value = self.value(key, default)
        if isinstance(value, list | tuple):
            if len(value) == 1:
                value = list(value) * count
            if len(value) != count:
                raise self.fault(key, f"found {shown(value)}", f"{count} whole numbers")
            return tuple(self._whole(key, one, least) for one in value)
        return (self._whole(key, value, least),) * count

    def pairs(self, key: str, count: int, default: int) -> tuple[tuple[int, int], ...]:
        """(before, after) for each dimension: of a number, a number a dimension, or pairs."""
        value = self.value(key, default)
        if count == 1 and isinstance(value, list) and len(value) == 2:
            value = [value]
        if not isinstance(value, list):
            value = [value] * count
        if len(value) != count:
            raise self.fault(key, f"found {shown(value)}", f"{count} pairs of whole numbers")
        both = [one if isinstance(one, list) else [one, one] for one in value]
        if any(len(one) != 2 for one in both):
            raise self.fault(key, f"found {shown(value)}", "pairs: before and after")
        return tuple((self._whole(key, a, 0), self._whole(key, b, 0)) for a, b in both)

    def number(
        self, key: str, default: float | None, least: float = -math.inf, most: float = math.inf
    ) -> float:
        """A finite number."""
        value = self.value(key, default)
        if isinstance(value, dict) and value.get("type") == "ndarray":  # Keras 2.1's numpy scalars
            value = value.get("value")
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        if not plain or not math.isfinite(float_of(value)) or not least <= value <= most:
            bounds = "a number" if least == -math.inf else f"a number from {least:g}"
            bounds += "" if most == math.inf else f" to {most:g}"
            raise self.fault(key, f"found {shown(value)}", bounds)
        return float(value)

    def text(self, key: str, default: str, known: Iterable[str]) -> str:
        """One of the known words, in any case."""
        return self.word(key, self.value(key, default), known)

    def word(self, key: str, value: Any, known: Iterable[str]) -> str:
        """One of the words."""
        names = list(known)
        if not isinstance(value, str) or value.lower() not in names:
            hint = nearest(value, names) if isinstance(value, str) else ""
            raise self.fault(key, f"found {shown(value)}{hint}", ", ".join(names))
        return value.lower()

    def must_be(self, key: str, *accepted: Any) -> None:
        """An option of which only some values are computed here; absent and null pass."""
        value = self.value(key)
        if value is not None and not any(value is one or _same(value, one) for one in accepted):
            told = ", ".join(shown(one) for one in accepted) or "null"
            raise self.fault(key, f"{shown(value)} is not supported", told)

    def channels_last(self) -> None:
        """Raises InputError for `channels_first`."""
        self.must_be("data_format", "channels_last")

    def regularized(self) -> None:
        """L1 and L2 penalties are read and not applied; constraints are refused."""
        for key, value in self._config.items():
            if key.endswith("_constraint"):
                self.must_be(key)
            elif key.endswith("_regularizer") and value is not None:
                self._read.add(key)
                name = value.get("class_name") if isinstance(value, dict) else value
                self.word(key, name, REGULARIZERS)

    def done(self) -> None:
        """Raises InputError for an option that this layer class does not have."""
        self.regularized()
        for key, value in self._config.items():
            known = key in self._read or key in HARMLESS or key.endswith("_initializer")
            if not known and value is not None:
                hint = nearest(key, sorted(self._read))
                accepted = ", ".join(sorted(self._read))
                raise self.fault("", f"unknown option '{short(key)}'{hint}", accepted)


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and bool(a == b)


def float_of(value: Any) -> float:
    """A number as a float; infinite where it is larger than any."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def short(text: str, most: int = 60) -> str:
    """A text of others, cut."""
    return text if len(text) <= most else f"{text[:most]}…"


def shown(value: Any) -> str:
    """A value of a network file as a message shows it."""
    if value is None:
        return "nothing"
    if isinstance(value, int) and abs(value) > 10**30:
        return "a number of more than 30 digits"
    if isinstance(value, list | dict) and len(value) > 8:
        return f"a {type(value).__name__} of {len(value)} entries"
    try:
        return short(repr(value))
    except (RecursionError, ValueError):
        return f"a deeply nested {type(value).__name__}"
