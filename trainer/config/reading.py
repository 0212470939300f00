"""JSON and YAML files, with one message for what cannot be read. Torch-free.

content = read_configuration("config.yaml")
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from trainer.errors import InputError

YAML_SUFFIXES = (".yaml", ".yml")
YAML_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
"""With an exponent, as YAML 1.2 and JSON write it: 1e-4, which YAML 1.1 takes for text."""


def read_configuration(path: str | Path) -> Any:
    """A configuration file, JSON or YAML by its name; raises InputError."""
    if Path(path).suffix.lower() in YAML_SUFFIXES:
        return read_yaml(path, "configuration")
    return read_json(path, "configuration")


def _text(path: Path, what: str, kind: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(str(path), f"no such {what}", f"a {kind} file", "check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        found = f"the {what} cannot be read ({error})"
        raise InputError(str(path), found, f"a {kind} file") from None


def _twice(path: Path, key: str) -> InputError:
    return InputError(str(path), f"the key '{key}' stands twice", "each key once", "delete one")


def read_json(path: str | Path, what: str) -> Any:
    """A JSON file; a syntax error or a key that stands twice in one object is an InputError."""
    path = Path(path)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content: dict[str, Any] = {}
        for key, value in pairs:
            if key in content:
                raise _twice(path, key)
            content[key] = value
        return content

    text = _text(path, what, "JSON")
    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}, line {error.lineno}, column {error.colno}",
            f"the {what} is not JSON ({error.msg})",
            "a JSON object",
            "look for a missing comma, bracket or quote just before that place",
        ) from None
    except (RecursionError, ValueError) as error:
        told = "nested too deeply" if isinstance(error, RecursionError) else "a number is too long"
        raise InputError(str(path), f"the {what} cannot be read: {told}", "a JSON object") from None


def read_yaml(path: str | Path, what: str) -> Any:
    """A YAML file, likewise; only what JSON could say, too. Raises InputError."""
    import yaml

    where = Path(path)

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Refuses keys that stand twice, and knows 1e-4 as a number."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            told = [self.construct_object(key, deep=True) for key, _ in node.value]
            for number, key in enumerate(told):
                if not isinstance(key, str):
                    found = f"the key {key!r} is no text"
                    raise InputError(str(path), found, "names", "put it in quotes")
                if key in told[:number]:
                    raise _twice(where, key)
            return super().construct_mapping(node, deep)

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", YAML_NUMBER, list("-+.0123456789"))
    text = _text(where, what, "YAML")
    try:
        return yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        found = f"the {what} is not YAML ({error.problem})"
        raise InputError(f"{path}{place}", found, "a YAML mapping") from None
    except (RecursionError, ValueError, yaml.YAMLError) as error:
        told = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InputError(
            str(path), f"the {what} cannot be read: {told}", "a YAML mapping"
        ) from None
