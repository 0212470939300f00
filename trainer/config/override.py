"""Single keys of a configuration, set from outside: `--set optimizer.learning_rate=1e-4`.

assign(content, "data.transforms[0].random_flip", 0.3)        # content: a parsed JSON object
key, value = parsed("optimizer.type=adam")
"""

from __future__ import annotations

import json
import re
from typing import Any

from trainer.errors import InputError

PART = re.compile(r"([A-Za-z_]\w*)((?:\[\d+\])*)")


def _steps(key: str) -> list[str | int]:
    steps: list[str | int] = []
    for part in key.split("."):
        match = PART.fullmatch(part)
        if not match:
            accepted = "names with dots between them, like optimizer.learning_rate"
            raise InputError(key, "is no key", accepted)
        steps.append(match[1])
        steps += [int(number) for number in re.findall(r"\d+", match[2])]
    return steps


def assign(content: dict[str, Any], key: str, value: Any) -> None:
    """Sets one key of a parsed JSON object, in place; sections that are missing are made.

    Raises InputError where the way there leads through something that is no section, or beyond the
    end of a list.
    """
    steps = _steps(key)
    place: Any = content
    for step, after in zip(steps, [*steps[1:], None], strict=True):
        if isinstance(step, int):
            if not isinstance(place, list) or step >= len(place):
                raise InputError(key, f"there is no [{step}]", "an entry of a list that is there")
        elif not isinstance(place, dict):
            raise InputError(key, f"'{step}' lies in no section", "a key of the configuration")
        if after is None:
            place[step] = value
        elif isinstance(place, dict) and place.get(step) is None and isinstance(after, str):
            place[step] = {}
            place = place[step]
        else:
            place = place.get(step) if isinstance(place, dict) else place[step]


def value_at(content: dict[str, Any], key: str) -> Any:
    """The value of one key, None where there is none."""
    place: Any = content
    for step in _steps(key):
        if isinstance(step, int):
            place = place[step] if isinstance(place, list) and step < len(place) else None
        else:
            place = place.get(step) if isinstance(place, dict) else None
    return place


def parsed(text: str) -> tuple[str, Any]:
    """KEY=VALUE; the value is JSON, or else text as it stands. Raises InputError."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set {text}", "is no KEY=VALUE", "--set optimizer.learning_rate=1e-4")
    try:
        return key.strip(), json.loads(value)
    except (ValueError, RecursionError):
        return key.strip(), value.strip()
