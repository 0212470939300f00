"""Configurations that are broken at random: each is accepted, or refused by one message of ours
that says where. 1,000 cases; RML_FUZZ=10000 (`make fuzz`) for more."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.test_config import TRIAL
from trainer.config import load_config, parse_config
from trainer.errors import InputError
from trainer.explain import told

CASES = int(os.environ.get("RML_FUZZ", "1000"))
FUZZ = settings(
    max_examples=CASES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize="RML_FUZZ" not in os.environ,
)
FULL: dict[str, Any] = {
    **TRIAL,
    "data": {
        **TRIAL["data"],
        "slicers": [{"name": "s", "sizes": [8, 8, 1], "strides": [4, 4, 1], "padding": [1, 1, 0]}],
        "transforms": [
            {"resize": [8, 8]},
            {"random_patches": {"number": 2, "size": 3}},
            {"normalize": {"mean": 0.5, "std": 0.5}},
            {"convert_color": "BGR2RGB"},
        ],
    },
    "optimizer": {
        **TRIAL["optimizer"],
        "lr_scheduler": [{"type": "Warmup", "num_epochs": 2}, {"type": "Step", "step_size": 2}],
    },
    "loss": {"function": "Focal", "source": "softmax", "weight": [1.0, 2.0], "ignore_index": 0},
}
WORDS = sorted(
    {"type", "images", "labels", "hdf5", "numpy", "mnist", "pde", "Adam", "adma", "nll", "lovasz"}
    | {"resize", "rotate", "padding", "NaN", "", "é\u0000", "\ud800", "__class__", "x" * 300}
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, -1, 10**30, -(10**30), 1e308, -1e308, float("nan"), float("inf")])
    | st.floats()
    | st.sampled_from(WORDS)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything in a JSON value."""
    found = [path]
    inside = content.items() if isinstance(content, dict) else []
    if isinstance(content, list):
        inside = list(enumerate(content))
    for key, value in inside:
        found += places(value, (*path, key))
    return found


@st.composite
def broken(draw: st.DrawFn, whole: Any) -> Any:
    """A copy in which up to three places were replaced, removed, renamed or doubled."""
    content = json.loads(json.dumps(whole))
    for _ in range(draw(st.integers(1, 3))):
        options = [path for path in places(content) if path]
        if not options:
            return content
        *way, key = draw(st.sampled_from(options))
        parent = content
        for step in way:
            parent = parent[step]
        action = draw(st.sampled_from(["replace", "replace", "remove", "rename", "double"]))
        if action == "remove":
            del parent[key]
        elif action == "rename" and isinstance(parent, dict):
            parent[draw(st.sampled_from(WORDS) | st.text(max_size=8))] = parent.pop(key)
        elif action == "double" and isinstance(parent, list):
            parent.append(parent[key])
        else:
            parent[key] = draw(VALUES)
    return content


@FUZZ
@given(broken({"neural_network": FULL}))
def test_a_broken_configuration_is_refused_with_its_place(content: Any) -> None:
    try:
        config = parse_config(content, "c.json")
    except InputError as error:
        assert str(error).startswith(("c.json", "2 faults", "3 faults")) or "faults" in str(error)
        assert "c.json" in str(error) and error.exit_code == 2
        return
    assert list(told(config))


@settings(FUZZ, max_examples=max(1, CASES // 5))
@given(st.binary(max_size=40), st.integers(0, 10_000), st.integers(0, 40))
def test_a_broken_file_is_refused_with_its_place(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, at: int, cut: int
) -> None:
    path = Path(tmp_path_factory.getbasetemp()) / "broken.json"
    text = json.dumps({"neural_network": FULL}).encode()
    at %= len(text)
    path.write_bytes(text[:at] + junk + text[at + cut :])
    try:
        assert list(told(load_config(path)))
    except InputError as error:
        assert "broken.json" in str(error)


@pytest.mark.parametrize("depth", [1_000, 100_000])
@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_deep_nesting_is_refused(tmp_path: Path, depth: int, opening: str) -> None:
    path = tmp_path / "deep.json"
    path.write_text('{"neural_network": ' + opening * depth)
    with pytest.raises(InputError, match=r"deep\.json"):
        load_config(path)
