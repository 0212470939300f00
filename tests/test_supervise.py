"""Commands that are no trainer of ours: started, stopped, and ended with their driver."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launchers import Job, owner
from launchers.container import Caller, Image, container_arguments
from launchers.process import ProcessLauncher, child_environment
from trainer.events import LOG_FILE, STDERR_FILE

ROOT = Path(__file__).resolve().parent.parent
DRIVER = """
import sys
from pathlib import Path
from launchers import Job
from launchers.process import ProcessLauncher
ProcessLauncher().launch(Job(Path.cwd(), "s", 0, command=tuple(sys.argv[1:]))).wait()
"""


def run(folder: Path, *command: str) -> int:
    folder.mkdir(exist_ok=True)
    return ProcessLauncher().launch(Job(folder, "s", 0, command=command)).wait(30)


def wait_for(path: Path) -> str:
    for _ in range(200):
        if path.exists() and (text := path.read_text()).endswith("\n"):
            return text
        time.sleep(0.05)
    raise AssertionError(f"{path.name} did not come")


def test_a_command_runs_without_a_shell_in_the_run_folder(tmp_path: Path) -> None:
    code = "import os, sys; print(os.getcwd(), sys.argv[1:])"
    assert run(tmp_path, sys.executable, "-c", code, "$HOME", "a b; ls") == 0
    assert (tmp_path / LOG_FILE).read_text() == f"{tmp_path} ['$HOME', 'a b; ls']\n"


@pytest.mark.parametrize(
    ("code", "expected"),
    [("sys.exit(4)", 4), ("os.kill(os.getpid(), 9)", 137), ("os.kill(os.getpid(), 15)", 143)],
)
def test_its_exit_code_is_the_commands(tmp_path: Path, code: str, expected: int) -> None:
    assert run(tmp_path, sys.executable, "-c", f"import os, sys; {code}") == expected


def test_a_program_that_is_not_there_is_a_mistake_of_input(tmp_path: Path) -> None:
    assert run(tmp_path, "no-such-program") == 2
    assert (
        "no-such-program: cannot be started (No such file" in (tmp_path / STDERR_FILE).read_text()
    )


def test_a_request_to_stop_reaches_the_command(tmp_path: Path) -> None:
    code = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(3)); print('up')"
    command = (sys.executable, "-u", "-c", f"{code}; time.sleep(60)")
    running = ProcessLauncher().launch(Job(tmp_path, "s", 0, command=command))
    wait_for(tmp_path / LOG_FILE)
    running.stop(20)
    assert running.exit_code == 3


@pytest.mark.parametrize("killed", ["driver", "supervisor"])
def test_nothing_outlives_a_kill(tmp_path: Path, killed: str) -> None:
    """The command and what it started, which ignores every polite signal."""
    script = tmp_path / "script.sh"
    script.write_text("trap '' TERM HUP\nsleep 60 & echo $$ $! > pids\nwait\nwait\n")
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, "sh", str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    pids = [int(pid) for pid in wait_for(tmp_path / "pids").split()]
    record = json.loads((tmp_path / "process.json").read_text())
    os.kill(driver.pid if killed == "driver" else record["pid"], signal.SIGKILL)
    driver.wait(20)
    for _ in range(100):
        left = [pid for pid in [*pids, record["pid"]] if owner.start_time(pid)]
        if not left:
            return
        time.sleep(0.05)
    raise AssertionError(left)


def test_a_heartbeat_that_stands_still_ends_the_command(tmp_path: Path) -> None:
    (tmp_path / "beat").touch()
    code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from trainer import supervise
supervise.STILL_SECONDS, supervise.LOOK_SECONDS = 1.0, 0.1
supervise.main(["beat", "--", "sh", "-c", "echo $$ > pid; sleep 60"])
"""
    running = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, start_new_session=True)
    pid = int(wait_for(tmp_path / "pid"))
    for _ in range(8):
        os.utime(tmp_path / "beat")
        time.sleep(0.2)
    assert running.poll() is None, "it beat"
    assert running.wait(20) == -signal.SIGKILL
    assert owner.start_time(pid) is None


def test_the_supervisor_is_as_patient_as_the_trainer() -> None:
    from trainer import stopping, supervise

    assert supervise.STILL_SECONDS == stopping.STILL_SECONDS


def test_modules_of_ours_run_with_this_python_and_see_the_program(tmp_path: Path) -> None:
    module = Job(tmp_path, "s", 0, module=("trainer.review", "--help"))
    assert ProcessLauncher().launch(module).wait(30) == 0
    assert "usage" in (tmp_path / LOG_FILE).read_text()
    foreign = Job(tmp_path, "s", 0, command=("python", "x.py"))
    assert "PYTHONPATH" not in child_environment(foreign, ROOT, {})
    kept = child_environment(foreign, ROOT, {"PYTHONPATH": "/mine"})
    assert kept["PYTHONPATH"] == "/mine"


def test_a_container_of_a_command() -> None:
    command = ("python", "/x/my_train.py", "/runs/s/t/config.json")
    job = Job(Path("/runs/s/t"), "s", 0, command=command)
    engine, caller = {"NCPU": 8, "MemTotal": 1000}, Caller(1000, 1000, ())
    ours = container_arguments(job, Image("rml-trainer", "1", "source"), caller, engine)
    supervisor = ["python", "-I", "-S", "/opt/rml/trainer/supervise.py", "heartbeat", "--"]
    assert ours["command"] == [*supervisor, *command]
    assert ours["environment"]["PYTHONSAFEPATH"] == ""
    other = container_arguments(job, Image("other", "2", None), caller, engine)
    assert other["command"] == list(command)
    own_module = Job(job.run_folder, "s", 0, module=("trainer.predict",))
    made = container_arguments(own_module, Image("rml-trainer", "1", "source"), caller, engine)
    assert "PYTHONSAFEPATH" not in made["environment"]
    assert made["command"] == [*supervisor, "python", "-m", "trainer.predict"]


def test_a_package_of_the_user_that_is_named_trainer_is_the_users(tmp_path: Path) -> None:
    """Its words look like ours; the user's Python and the user's module run all the same."""
    (tmp_path / "mine/trainer").mkdir(parents=True)
    (tmp_path / "mine/trainer/__main__.py").write_text("print('mine')")
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "mine")}
    words = ("python", "-m", "trainer", "config.json")
    launch = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{DRIVER}"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    subprocess.run([*launch, *words], cwd=run_folder, env={**env, "PATH": path}, check=True)
    assert (run_folder / LOG_FILE).read_text() == "mine\n"
