"""A training script of the user's own, as a process and in a container."""

from __future__ import annotations

import gc
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest

from launchers import owner
from launchers.choice import choose_launcher
from study.trial_command import parse_trial_command
from tests import studies
from trainer.errors import InputError
from trainer.events import read_event

PYTHON = shlex.quote(sys.executable)
EXAMPLE = f"{PYTHON} my_train.py {{config}}"
TELL = """
import json, os, pathlib, signal, sys, time
config = json.load(open(sys.argv[1]))["neural_network"]
trial = int(pathlib.Path.cwd().name.split("-")[1])
def epoch(number, **told):
    with open("metrics.jsonl", "a") as file:
        file.write(json.dumps({"event": "epoch", "epoch": number, **told}) + "\\n")
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with data and the example script."""
    studies.make_data(tmp_path / "data")
    (tmp_path / "my_train.py").write_bytes((studies.ROOT / "examples/my_train.py").read_bytes())
    return tmp_path


def options(command: str, *more: str) -> list[str]:
    fast = ("--data", "data", "--num-epochs", "3", "--image-size", "20", "--batch-size", "2")
    given = ("--loss", "bce", "--threads", "1", "--no-gpu", "--study-name", "s")
    return [*fast, *given, "--trial-command", command, *more]


def script(here: Path, code: str) -> str:
    """A command that runs `code`, which is quick: it imports nothing large."""
    (here / "script.py").write_text(TELL + code)
    return f"{PYTHON} -S script.py {{config}}"


def listed(here: Path) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = json.loads((here / "list_acc.json").read_text())
    return content


def origin(here: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((here / "best_model/best_model.json").read_text())
    return content


def trials(here: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="s", storage=f"sqlite:///{here}/rml_study.db").trials


# ------------------------------------------------------------------------------------ the words


def test_words_that_name_files_become_absolute(tmp_path: Path) -> None:
    (tmp_path / "my train.py").touch()
    (tmp_path / "lib").mkdir()
    (tmp_path / "python").mkdir()
    text = "python 'my train.py' --lib=lib ./lib x=lib $HOME --config={config}"
    command = parse_trial_command(text, tmp_path)
    assert command.words == (
        *("python", f"{tmp_path}/my train.py", f"--lib={tmp_path}/lib", f"{tmp_path}/lib"),
        *("x=lib", "$HOME", "--config={config}"),
    )
    assert set(command.inputs) == {tmp_path / "my train.py", tmp_path / "lib"}
    assert command.for_config(Path("/run/config.json"))[-1] == "--config=/run/config.json"
    assert parse_trial_command(str(command), Path("/")) == command, "as a resume reads it"


def test_a_plain_word_that_is_also_a_folder_stays(tmp_path: Path) -> None:
    for name in ("trainer", "train"):
        (tmp_path / name).mkdir()
    (tmp_path / "module").touch()
    (tmp_path / "weights").touch()
    command = parse_trial_command("python -m trainer train weights --in=train {config}", tmp_path)
    assert command.words == (
        *("python", "-m", "trainer", "train", f"{tmp_path}/weights", f"--in={tmp_path}/train"),
        "{config}",
    )
    assert command.inputs == (tmp_path / "weights", tmp_path / "train")
    assert parse_trial_command("python -m module {config}", tmp_path).inputs == ()
    assert parse_trial_command("train {config} -m ./weights", tmp_path).words == (
        *("train", "{config}", "-m", f"{tmp_path}/weights"),
    )


def test_a_program_beside_is_a_file_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "train.sh").touch()
    assert parse_trial_command("./train.sh {config}", tmp_path).inputs == (tmp_path / "train.sh",)
    installed = parse_trial_command("/bin/sh {config}", tmp_path)
    assert (installed.words[0], installed.inputs) == ("/bin/sh", ())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("python my_train.py", "has no {config}"),
        ("python 'my_train.py {config}", "cannot be read: No closing quotation"),
        ("", "is empty"),
        ("python my_trian.py {config}", "there is no file 'my_trian.py'"),
    ],
)
def test_a_wrong_command_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_trial_command(text, tmp_path)
    assert expected in str(caught.value) and "--trial-command" in str(caught.value)


def test_a_program_that_is_not_here(here: Path) -> None:
    code, _, told = studies.typed_here(here, *options("no-such-program {config}"))
    assert code == 2 and "there is no program 'no-such-program' here" in told
    assert not (here / "runs").exists()


def test_a_command_runs_as_a_process_unless_a_container_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)  # no torch here
    place = choose_launcher("auto", "rml-trainer", False, False, True)
    assert (place.launcher.name, place.foreign) == ("process", False)
    with pytest.raises(InputError, match="no torch"):
        choose_launcher("process", "rml-trainer", False, False)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("accuracy 0.9", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "not an object"),
        ('{"event": "epoch", "accuracy": 0.5}', "no epoch number"),
        ('{"event": "epoch", "epoch": "1"}', "no epoch number"),
        ('{"event": "epoch", "epoch": 0}', "no epoch number"),
        ('{"event": "epoch", "epoch": 1, "accuracy": "high"}', "accuracy is not a number"),
        ('{"event": "epoch", "epoch": 1, "seconds": true}', "seconds is not a number"),
        ('{"event": "epoch", "epoch": 1, "loss": 1' + 400 * "0" + "}", "loss is not a number"),
    ],
)
def test_a_line_that_tells_nothing(line: str, why: str) -> None:
    gc.collect()
    gc.disable()  # no object of another test may end in the depth of the deepest line
    try:
        event = read_event(line)
    finally:
        gc.enable()
    assert (event["event"], event["why"]) == ("unreadable", why) and len(event["line"]) < 100


def test_numbers_that_are_not_finite_are_no_value() -> None:
    assert read_event('{"event": "epoch", "epoch": 2, "accuracy": NaN}')["accuracy"] is None


# ---------------------------------------------------------------------------------- whole studies


@pytest.mark.slow
def test_what_a_script_leaves_becomes_the_model(here: Path) -> None:
    """Broken lines are said once; any file best.* is kept; the test images stay unread."""
    code = """
open("metrics.jsonl", "a").write("oh\\n[]\\n")
for number in range(1, 4):
    epoch(number, accuracy=0.5 + trial / 10 + number / 100)
os.mkdir("checkpoints")
open("checkpoints/best.bin", "w").write(f"model {trial}")
open("result.json", "w").write("[]")
"""
    ended = studies.driver(here, *options(script(here, code), "--num-trials", "3"))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("a line of metrics.jsonl is passed over (not JSON): 'oh'") == 3
    assert "Traceback" not in ended.stdout + ended.stderr
    assert [e["max_acc"] for e in listed(here)] == pytest.approx([0.53, 0.63, 0.73])
    names = {path.name for path in (here / "best_model").iterdir()}
    assert names == {"best_model.json", "best_model_file.bin", "split.json"}
    assert (here / "best_model/best_model_file.bin").read_text() == "model 2"
    model = origin(here)
    assert model["command"] == [sys.executable, "-S", f"{here}/script.py", "{config}"]
    assert model["test"] is None
    assert "best_model/best_model_file.bin; how to use it, only your command knows" in ended.stdout
    assert "config_test.json" not in ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "more", "cause"),
    [
        ("epoch(1, accuracy=0.5)", ("--metric", "iou"), "ended without a single iou"),
        ("print('all is well')", (), "ended without a single accuracy; it said: all is well"),
        ("sys.exit('no data')", (), "the command ended with exit code 1: no data"),
        ("os.kill(os.getpid(), 9)", (), "killed (signal 9)"),
        ("sys.exit(4)", (), "loss is not a number, says exit code 4 of the command"),
    ],
)
def test_a_script_that_fails_is_told(
    here: Path, code: str, more: tuple[str, ...], cause: str
) -> None:
    code, out, err = studies.typed_here(
        here, *options(script(here, code), "--num-trials", "1", *more)
    )
    assert code == 1 and cause in err, out + err
    assert trials(here)[0].user_attrs["cause"].startswith(cause)
    assert not (here / "best_model").exists()


@pytest.mark.slow
def test_the_example_with_pruning_and_resume(here: Path) -> None:
    """The README's line; Ctrl-C in the midst; then the rest, with hopeless trials pruned."""
    given = options(
        EXAMPLE,
        *("--num-epochs", "200", "--num-trials", "9"),
        *("--lr-range-min", "1e-7", "--lr-range-max", "0.1"),
    )
    begun = subprocess.Popen(
        [sys.executable, str(studies.ROOT / "rml_optimization.py"), *given],
        cwd=here,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for_epoch(here / "runs/s/trial-0001")
    begun.send_signal(signal.SIGINT)
    out, _ = begun.communicate(timeout=60)
    assert begun.returncode == 130 and "go on with" in out
    other = studies.driver(
        here, "--resume", "--trial-command", f"{PYTHON} -S my_train.py {{config}}"
    )
    assert other.returncode == 2 and "--trial-command" in other.stderr
    ended = studies.driver(here, "--resume")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    states = [trial.state.name for trial in trials(here)]
    assert states.count("COMPLETE") >= 5 and "PRUNED" in states, states
    assert "interrupted" in trials(here)[1].user_attrs["cause"]
    best = origin(here)
    assert best["value"] > 0.8 and (here / "best_model/best_model_file.npy").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["masks beside", "classes"])
def test_the_example_says_what_it_does_not_serve(here: Path, kind: str) -> None:
    more: tuple[str, ...] = ("--data", "beside")
    if kind == "masks beside":
        studies.make_class_folders(here / "beside")
    else:
        (here / "labels.json").write_text('{"background": 0, "lesion": 255}')
        more = ("--labels", "labels.json")
    code, out, err = studies.typed_here(here, *options(EXAMPLE, "--num-trials", "3", *more))
    assert code == 2 and "this example takes masks of two values" in err, out
    assert not (here / "runs/s/trial-0001").exists() and "Traceback" not in out + err


def test_the_example_is_as_long_as_the_contract_says() -> None:
    lines = (studies.ROOT / "examples/my_train.py").read_text().splitlines()
    contract = (studies.ROOT / "docs/contract.md").read_text()
    assert f"in {sum(map(bool, lines))} lines of numpy" in contract


def wait_for_epoch(run_folder: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        metrics = run_folder / "metrics.jsonl"
        if metrics.exists() and metrics.read_text():
            return
        time.sleep(0.02)
    raise AssertionError("no epoch came")


@pytest.mark.slow
def test_a_killed_driver_leaves_nothing_and_the_trial_begins_again(here: Path) -> None:
    code = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
epoch(1, accuracy=0.5)
again = os.path.exists("../again")
open("../pids", "a").write(f"{os.getpid()} ")
time.sleep(0 if again else 60)
"""
    given = options(script(here, code), "--num-trials", "2")
    driver = subprocess.Popen(
        [sys.executable, str(studies.ROOT / "rml_optimization.py"), *given], cwd=here
    )
    wait_for_epoch(here / "runs/s/trial-0000")
    time.sleep(0.2)
    driver.kill()
    driver.wait()
    pid = int((here / "runs/s/pids").read_text())
    end = time.monotonic() + 10
    while owner.start_time(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert owner.start_time(pid) is None
    (here / "runs/s/again").touch()
    ended = studies.driver(here, "--resume")
    assert ended.returncode == 0, ended.stderr
    assert [(t.number, t.state.name) for t in trials(here)] == [(0, "COMPLETE"), (1, "COMPLETE")]


# -------------------------------------------------------------------------------- in containers


@pytest.fixture(scope="module")
def image() -> str:
    return studies.our_image()


def containers() -> list[str]:
    command = ["docker", "ps", "-aq", "--filter", "label=org.rml-optimization.study=s"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.slow
@pytest.mark.docker
def test_the_examples_in_containers(image: str, here: Path) -> None:
    given = options("python my_train.py {config}", "--docker-image", image, "--num-trials", "2")
    more = ("--num-epochs", "40", "--lr-range-min", "0.02", "--lr-range-max", "0.1")
    ended = studies.driver(here, *given, *more)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert origin(here)["launcher"] == "docker" and origin(here)["value"] > 0.8
    assert (here / "best_model/best_model_file.npy").exists()
    layers = str(studies.ROOT / "examples/my_net.json")
    net = ("--layers", layers, "--image-size", "16", "--study-name", "net", "--threads", "1")
    ended = studies.driver(
        here, "--data", "data", *net, "--docker-image", image, "--num-trials", "1", "-ne", "2"
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert origin(here)["network"]["module"] == "my_net.py:Net"
    assert (here / "best_model/my_net.py").exists()
    assert not (here / "best_model/best_model_file.bin").exists()


@pytest.mark.slow
@pytest.mark.docker
def test_no_container_of_a_command_outlives_its_driver(image: str, here: Path) -> None:
    code = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nepoch(1, accuracy=0.5)\ntime.sleep(300)"
    script(here, code)
    given = options("python script.py {config}", "--docker-image", image, "--num-trials", "1")
    driver = subprocess.Popen(
        [sys.executable, str(studies.ROOT / "rml_optimization.py"), *given], cwd=here
    )
    wait_for_epoch(here / "runs/s/trial-0000")
    driver.kill()
    driver.wait()
    end = time.monotonic() + 60
    while containers() and time.monotonic() < end:
        time.sleep(0.5)
    assert containers() == []
