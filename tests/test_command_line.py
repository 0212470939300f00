"""The trainer's command line: single keys, YAML, a drawn seed, threads."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Ended
from tests.test_config import trial
from trainer.__main__ import AFFINITIES, main
from trainer.checkpoint import load_checkpoint
from trainer.config import load_config, parse_config
from trainer.errors import InputError

Train = Callable[..., Ended]

YAML = """
neural_network:
  layers: l.json
  data: {input_path: i, target_path: t, batch_size: 4}
  optimizer: {type: adam, learning_rate: 1e-4, weight_decay: 1.5E-5}
  loss: {function: dice}
"""


def written(folder: Path, content: Any, name: str = "c.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_single_keys_are_set_before_the_checks(tmp_path: Path) -> None:
    path = written(tmp_path, trial())
    config = load_config(
        path, ["optimizer.learning_rate=1e-4", "optimizer.type=AdamW", "outfile=x=1.txt"]
    )
    assert config.optimizer and config.optimizer.learning_rate == 1e-4
    assert config.optimizer.type == "adamw" and config.outfile == "x=1.txt"
    assert load_config(path, ["num_epochs=3", "num_epochs=4"]).num_epochs == 4


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "optimizer.learning_rat=1",
            "--set optimizer.learning_rat=1: unknown key 'learning_rat'; ",
        ),
        ("optimiser.eps=1", "--set optimiser.eps=1, optimiser: unknown key 'optimiser'; did you"),
        ('optimizer={"type": "adam", "bta1": 0}', r"optimizer\.bta1: unknown key 'bta1'"),
        ("num_epochs=many", "--set num_epochs=many: Input should be a valid integer"),
        (
            "optimizer.nesterov=true",
            r"c\.json with --set optimizer\.nesterov=true, optimizer: nest",
        ),
        ("num_epochs", "--set num_epochs: is no KEY=VALUE"),
        ("num epochs=1", "--set num epochs=1: is no key"),
        (
            "data.transforms[9].resize=1",
            r"--set data\.transforms\[9\]\.resize=1: there is no \[9\]",
        ),
    ],
)
def test_a_wrong_setting_is_told_as_one(tmp_path: Path, setting: str, message: str) -> None:
    path = written(tmp_path, trial(optimizer={"type": "sgd"}))
    with pytest.raises(InputError, match=message):
        load_config(path, [setting])


def test_a_fault_of_the_file_is_not_laid_to_a_setting(tmp_path: Path) -> None:
    path = written(tmp_path, trial(loss={"function": "dyce"}))
    with pytest.raises(InputError) as caught:
        load_config(path, ["num_epochs=3"])
    assert "--set" not in str(caught.value)


def test_check_tells_what_was_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, trial())
    assert main(["--check", str(path), "--set", "optimizer.weight_decay=0.5"]) == 0
    line = next(
        one for one in capsys.readouterr().out.splitlines() if one.startswith("optimizer.weight")
    )
    assert line.split() == ["optimizer.weight_decay", "0.5", "acts"]
    assert main(["--check", str(path), "--set", "optimizer.weight=1"]) == 2
    assert "did you mean 'weight_decay'" in capsys.readouterr().err


def test_yaml_is_read_as_json_is(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, YAML, "c.yaml"))
    content = {
        "layers": "l.json",
        "data": {"input_path": "i", "target_path": "t", "batch_size": 4},
        "optimizer": {"type": "adam", "learning_rate": 1e-4, "weight_decay": 1.5e-5},
        "loss": {"function": "dice"},
    }
    assert config == parse_config({"neural_network": content})
    assert load_config(written(tmp_path, YAML, "c.YML")) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (YAML + "  seed: 1\n  seed: 2\n", "the key 'seed' stands twice"),
        (YAML + "  sed: 1\n", r"c\.yaml, sed: unknown key 'sed'; did you mean 'seed'"),
        (YAML + "  seed: [1\n", r"c\.yaml, line \d+, column \d+: the configuration is not YAML"),
        (YAML + "  1: x\n", "the key 1 is no text"),
        (YAML + "  outfile: !!python/object/apply:os.getcwd []\n", "is not YAML"),
        ("- a\n", "no object 'neural_network'"),
        ("", "no object 'neural_network'"),
    ],
)
def test_wrong_yaml_is_told(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config(written(tmp_path, text, "c.yaml"))


def test_yaml_that_is_not_there() -> None:
    with pytest.raises(InputError, match="no such configuration"):
        load_config("nowhere.yaml")


@pytest.mark.slow
def test_a_drawn_seed_is_told_and_repeats_the_run(
    configuration: Callable[..., dict[str, Any]], train: Train
) -> None:
    once = train(configuration(seed=-1), "once")
    seed = once.events[0]["seed"]
    assert f"Seed: {seed}, drawn" in once.out
    assert load_checkpoint(once.folder / "checkpoints" / "last.pt")["origin"]["seed"] == seed
    other = train(configuration(seed=-1), "other")
    assert other.events[0]["seed"] != seed and other.epochs[-1]["loss"] != once.epochs[-1]["loss"]
    again = train(configuration(seed=seed), "again")
    assert [e["loss"] for e in again.epochs] == [e["loss"] for e in once.epochs]
    (once.folder / "result.json").unlink()
    more = train(configuration(seed=-1, num_epochs=3), "once", "--resume")
    assert more.events[-1]["event"] == "end" and more.code == 0
    starts = [event for event in more.events if event["event"] == "start"]
    assert [start["seed"] for start in starts] == [seed, seed]


PRINT = """
import json, os, sys
from trainer.__main__ import main
code = main(sys.argv[1:])
import torch
names = ("KMP_BLOCKTIME", "KMP_AFFINITY", "OMP_PROC_BIND", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
told = {name: os.environ.get(name) for name in names}
print(json.dumps([code, torch.get_num_threads(), torch.get_num_interop_threads(), told]))
"""


@pytest.mark.slow
def test_threads_are_what_was_asked_for(
    configuration: Callable[..., dict[str, Any]],
    python: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    path = written(tmp_path, configuration(num_epochs=1))
    options = ["--threads", "2", "--inter-op-threads", "3", "--blocktime", "1"]
    options += ["--affinity", "near", "--device", "cpu"]
    ended = python("-c", PRINT, "--config", str(path), *options)
    assert ended.returncode == 0, ended.stderr
    code, threads, inter_op, told = json.loads(ended.stdout.splitlines()[-1])
    assert (code, threads, inter_op) == (0, 2, 3)
    assert told["KMP_BLOCKTIME"] == "1" and told["GOMP_SPINCOUNT"] == "100000"
    assert told["OMP_PROC_BIND"] == "close"
    assert told["KMP_AFFINITY"] == AFFINITIES["near"]["KMP_AFFINITY"]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--threads", "0", "0 threads cannot compute"),
        ("--inter-op-threads", "-1", "--inter-op-threads: -1 threads cannot compute"),
        ("--blocktime", "soon", "--blocktime: 'soon' is no time"),
    ],
)
@pytest.mark.usefixtures("own_state")
def test_wrong_threads_are_told(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    option: str,
    value: str,
    message: str,
) -> None:
    path = written(tmp_path, trial())
    assert main(["--config", str(path), f"{option}={value}"]) == 2
    assert message in capsys.readouterr().err
