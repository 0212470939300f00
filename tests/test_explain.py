"""--schema and --check: editors accept what the trainer accepts, and what acts is told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.test_config import PUBLISHED, trial
from trainer.config import Section, parse_config
from trainer.errors import InputError
from trainer.explain import keys, schema, told, why_unused

VALIDATOR = jsonschema.Draft202012Validator(schema())


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published configurations are not here")
def test_editors_accept_the_published_configurations() -> None:
    files = sorted(PUBLISHED.glob("*.json"))
    assert len(files) == 16
    for path in files:
        VALIDATOR.validate(json.loads(path.read_text()))


CHANGES: list[dict[str, Any]] = [
    {},
    {"optimizer": {"type": "AdamW"}},
    {"optimizer": {"type": "ADAM"}},
    {"optimizer": {"lr_scheduler": [{"type": "Warmup"}, {"type": "step", "gamma": 0.1}]}},
    {"data": {"transforms": [{"random_patches": {"number": 3, "size": 8}}]}},
    {"optimizer": {"type": "adamax"}},
    {"optimizer": {"learning-rate": 0.1}},
    {"optimizer": {"learning_rate": "fast"}},
    {"optimizer": {"learning_rate": -1}},
    {"loss": {"function": "dyce"}},
    {"data": {"type": "numpie"}},
    {"data": {"transforms": [{"resize": [64, 64], "rotate": 3}]}},
    {"data": {"transforms": [{"resise": [64, 64]}]}},
    {"data": {"batch_size": 0}},
    {"num_epochs": 1.5},
]


@pytest.mark.parametrize("change", CHANGES)
def test_editors_and_the_trainer_agree(change: dict[str, Any]) -> None:
    content = trial(**change)
    try:
        parse_config(content)
        accepted = True
    except InputError:
        accepted = False
    assert VALIDATOR.is_valid(content) == accepted


def test_every_key_of_the_schema_says_what_it_means() -> None:
    for name, section in schema()["$defs"].items():
        assert section.get("description"), name
        for key, content in section["properties"].items():
            assert content.get("description"), f"{name}.{key}"


def reasons(**change: Any) -> dict[str, str]:
    config = parse_config(trial(**change))
    return {key: why for key, _ in keys(config) if (why := why_unused(key, config))}


def test_keys_that_do_nothing_are_told_with_the_reason() -> None:
    assert reasons() == {"data.preload": "what fits into memory is read first in any case"}
    assert reasons(optimizer={"type": "adam", "momentum": 0.9})["optimizer.momentum"] == (
        "adam has none"
    )
    found = reasons(optimizer={"type": "Hessian"})
    assert found["optimizer.learning_rate"] == "it finds its own step"
    assert found["optimizer.lr_scheduler.gamma"] == "hessian finds its own step"
    chain = [{"type": "Warmup", "gamma": 0.5}, {"type": "Step", "gamma": 0.5, "milestones": [3]}]
    found = reasons(optimizer={"lr_scheduler": chain})
    assert found["optimizer.lr_scheduler[0].gamma"] == "warmup has none"
    assert found["optimizer.lr_scheduler[1].milestones"] == "step has none"
    assert "optimizer.lr_scheduler[1].gamma" not in found
    assert reasons(loss={"function": "nll"})["loss.source"] == "nll has none"


def test_what_is_for_training_does_nothing_without_it() -> None:
    content = trial(data={"transforms": [{"resize": [64, 64]}, {"random_zoom": 0.1}]})
    for key in ("input_path", "target_path"):
        del content["neural_network"]["data"][key]
    config = parse_config(content)
    unused = {key for key, _ in keys(config) if why_unused(key, config)}
    assert {"outfile", "num_epochs", "optimizer.type", "data.batch_size"} <= unused
    assert "data.transforms[1].random_zoom" in unused
    assert not {"layers", "checkpoints.load", "data.transforms[0].resize"} & unused


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trainer", *arguments]
    root = Path(__file__).resolve().parent.parent
    environment = {"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_commands(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps(trial(optimizer={"type": "adam", "alpha": 0.5})))
    done = run("--check", "c.json", folder=tmp_path)
    assert done.returncode == 0 and not done.stderr
    assert any(
        line.split() == ["optimizer.alpha", "0.5", "unused:", "adam", "has", "none"]
        for line in done.stdout.splitlines()
    )
    assert json.loads(run("--schema", folder=tmp_path).stdout) == json.loads(json.dumps(schema()))
    (tmp_path / "c.json").write_text(json.dumps(trial(optimizer={"type": "adam", "alfa": 0.5})))
    done = run("--check", "c.json", folder=tmp_path)
    assert done.returncode == 2 and "did you mean 'alpha'" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_key_of_the_language_can_be_told() -> None:
    for section in Section.__subclasses__():
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name}"
    lines = list(told(parse_config(trial())))
    assert lines[-1] == "24 keys, 23 act, 1 unused"
