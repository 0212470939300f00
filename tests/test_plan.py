"""What a study would take: arithmetic, the trainer's measurement, `plan` as one types it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rml_optimization
from launchers.run_folder import trainer_options
from study.commands.plan import Measured
from tests import studies
from tests.conftest import TEST, TRAINING, Ended

SECONDS = {
    "build": 1.0,
    "read_image": 0.1,
    "step": 2.0,
    "batch_norm_image": 0.01,
    "evaluate_image": 0.2,
    "first_evaluate_image": 0.3,
    "checkpoint": 0.5,
}


def measured(reads_every_epoch: bool = False) -> Measured:
    images = {"training": 400, "evaluation": 50, "batch_norm": 256}
    told: dict[str, Any] = {"seconds": SECONDS, "images": images, "samples": 400}
    told |= {"batch_size": 20, "threads": 2}
    return Measured({**told, "reads_every_epoch": reads_every_epoch}, start_seconds=4.0)


def test_arithmetic() -> None:
    epoch = 400 / 20 * 2 + 256 * 0.01 + 50 * 0.2 + 0.5
    fixed = 4 + 1 + 450 * 0.1 + 50 * 0.1
    found = measured()
    assert found.epoch_seconds() == pytest.approx(epoch)
    assert found.trial_seconds(10) == pytest.approx(fixed + 10 * epoch)
    test = 4 + 1 + 30 * (0.1 + 0.3)
    assert found.study_seconds(7, 10, 30) == pytest.approx(7 * (fixed + 10 * epoch) + test)


def test_the_last_batch_of_an_epoch_is_a_step_whatever_its_size() -> None:
    def steps(images: int) -> float:
        counts = {"training": images, "evaluation": 0, "batch_norm": 0}
        told = {"seconds": SECONDS, "images": counts, "samples": images, "batch_size": 32}
        return Measured({**told, "reads_every_epoch": False}, 0.0).epoch_seconds() - 0.5

    assert [steps(n) for n in (17, 32, 40)] == [2.0, 2.0, 4.0]


def test_images_that_do_not_fit_into_memory_are_read_in_every_epoch_by_one_thread() -> None:
    more = measured(True).epoch_seconds() - measured().epoch_seconds()
    assert more == pytest.approx(0.1 * 2 * (400 + 50 + 256))
    assert measured(True).fixed_seconds() == pytest.approx(4 + 1 + 50 * 0.1)


def test_the_trainer_measures_and_trains_nothing(
    configuration: Callable[..., dict[str, Any]], train: Callable[..., Ended]
) -> None:
    ended = train(configuration(num_epochs=1000), "run", "--measure")
    assert ended.code == 0, ended.err
    told = ended.result["measured"]
    assert told["images"] == {"training": TRAINING, "evaluation": TEST, "batch_norm": TRAINING}
    assert set(told["seconds"]) == set(SECONDS)
    assert all(value > 0 for value in told["seconds"].values())
    assert told["seconds"]["step"] < told["measured_seconds"] < 60
    assert 50e6 < told["memory_bytes"] < 10e9
    assert ended.epochs == []


def test_a_configuration_that_trains_nothing_cannot_be_measured(
    configuration: Callable[..., dict[str, Any]], train: Callable[..., Ended]
) -> None:
    content = configuration(data={"input_path": None, "target_path": None}, optimizer=None)
    assert train(content, "run", "--measure").code == 2


def test_the_launchers_ask_for_it() -> None:
    assert trainer_options("cpu", 1, measure=True).count("--measure") == 1
    assert "--measure" not in trainer_options("cpu", 1)


def test_plan_takes_the_options_of_a_study() -> None:
    from typer.main import get_command

    group: Any = get_command(rml_optimization.app)
    names = [{o for p in c.params for o in p.opts} for c in (group, group.commands["plan"])]
    assert "--num-trials" in names[1]
    assert names[0] - names[1] == {"--install-completion", "--show-completion"}
    assert names[1] <= names[0]


def test_plan_refuses_what_a_study_refuses(tmp_path: Path) -> None:
    for options, told in (
        (("--num-trials", "0"), "--num-trials: 0 is too few"),
        (("--data", "nowhere"), "there is no such data folder"),
        (("--resume",), "a plan is of a new study"),
    ):
        given = ("plan", *options, "--launcher", "process")
        code, _, err = studies.typed_here(tmp_path, *given)
        assert code == 2 and told in err
    code, _, err = studies.typed_here(tmp_path, "--seed", "3", "plan")
    assert code == 2 and "stands before the command 'plan'" in err
    assert list(tmp_path.iterdir()) == []


def seconds(text: str, name: str) -> float:
    """Of a row like `| A trial | about 7 s; … |`."""
    found = re.search(rf"\| {name}\s*\| about (\d+) (s|min)", text)
    assert found, text
    return float(found[1]) * (60 if found[2] == "min" else 1)


@pytest.mark.slow
def test_plan_starts_nothing_and_comes_near(tmp_path: Path) -> None:
    data = studies.make_data(tmp_path / "data", images=60)
    network = studies.layers(tmp_path)
    given = ("--data", str(data), "--layers", str(network), *studies.SMALL, "--threads", "1")
    before = sorted(tmp_path.iterdir())
    planned = studies.driver(tmp_path, "plan", *given, "--num-trials", "2")
    assert planned.returncode == 0, planned.stderr
    assert "It would end" in planned.stdout and "Predicting nothing scores" in planned.stdout
    assert sorted(tmp_path.iterdir()) == before
    ended = studies.driver(tmp_path, *given, "--num-trials", "2", "--study-name", "s")
    assert ended.returncode == 0, ended.stderr
    trial = json.loads((tmp_path / "list_acc.json").read_text())[1]["seconds"]
    assert trial / 4 < seconds(planned.stdout, "A trial") < trial * 4  # machines are shared


@pytest.mark.slow
def test_plan_that_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    data = studies.make_data(tmp_path / "data")
    given = (
        "--data",
        str(data),
        "--launcher",
        "process",
        "--layers",
        str(studies.layers(tmp_path)),
    )
    before = sorted(tmp_path.iterdir())
    program = [sys.executable, str(studies.ROOT / "rml_optimization.py"), "plan", *given]
    plan = subprocess.Popen(program, cwd=tmp_path, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not list(tmp_path.glob(".plan-*/trial-0000/process.json")) and time.monotonic() < end:
        time.sleep(0.02)
    plan.send_signal(signal.SIGTERM)
    assert plan.wait(60) == 130
    assert sorted(tmp_path.iterdir()) == before
