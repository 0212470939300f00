"""Trials in real containers: who they are, what they can reach, how they end, what they leave.

Needs a Docker engine with the image python:3.11-slim; two tiny images are built on it and removed.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launchers import Job, engine, owner
from launchers.container import LABEL, Caller
from launchers.docker import LOST, DockerLauncher, RunningContainer
from trainer.errors import InputError
from trainer.events import HEARTBEAT_FILE, STDERR_FILE

ROOT = Path(__file__).resolve().parent.parent
BASE = "python:3.11-slim"
OURS, FOREIGN = "rml-test-ours", "rml-test-foreign"
CALLER = Caller(1000, 1000, (1000, 4242))

# Stands in for the trainer: does what config.json asks, and tells what it found.
TRAINER = r"""
import json, os, pathlib, signal, socket, sys, time
def tell(**event):
    with open("metrics.jsonl", "a") as file:
        file.write(json.dumps(event) + "\n")
def outcome(action):
    try:
        return action() or "done"
    except OSError as error:
        return type(error).__name__
def stop(*_):
    tell(event="end")
    sys.exit(3)
signal.signal(signal.SIGTERM, stop)
what = json.load(open("config.json"))
print("a warning", file=sys.stderr, flush=True)
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
tell(event="start", argv=sys.argv[1:], uid=os.getuid(), gid=os.getgid(), groups=os.getgroups(),
     cwd=os.getcwd(), capabilities=int(status["CapEff"], 16), new=status["NoNewPrivs"].strip(),
     home=os.environ["HOME"], threads=os.environ["OMP_NUM_THREADS"],
     cores=len(os.sched_getaffinity(0)),
     network=outcome(lambda: socket.create_connection(("1.1.1.1", 53), 3).close()),
     interfaces=os.listdir("/sys/class/net"),
     root=outcome(lambda: pathlib.Path("/made").touch()),
     tmp=outcome(lambda: pathlib.Path("/tmp/made").touch()),
     input=outcome(lambda: pathlib.Path(what.get("folder", "."), "made").touch()),
     read=[outcome(pathlib.Path(path).read_text) for path in what.get("read", [])])
if what.get("memory"):
    held = bytearray(what["memory"])
time.sleep(what.get("sleep", 0))
sys.exit(what.get("code", 0))
"""

RMLDNN = """#!/bin/sh
echo "on stdout $*"
echo "on stderr" >&2
printf '1 Loss: 0.7 Accuracy: 0.500\\n2 Loss: nan Accuracy: nan\\n3 Loss: 0.5 Acc' > out_test.txt
if [ -e sleep ]; then sleep 60; fi
exit 9
"""

RECIPE = f"""FROM {BASE}
COPY . /opt/rml
ENV PYTHONPATH=/opt/rml PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1
RUN mv /opt/rml/rmldnn /usr/local/bin/ && chmod 755 /usr/local/bin/rmldnn && chmod -R a+rX /opt/rml
"""


@functools.cache
def why_not() -> str:
    """Why these tests cannot run here; empty if they can."""
    try:
        images = engine.connect().images.list(BASE)
    except InputError as error:
        return str(error)
    return "" if images else f"there is no image {BASE}"


@pytest.fixture(autouse=True)
def _engine() -> None:
    if why_not():
        pytest.skip(why_not())


pytestmark = [pytest.mark.docker, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Two images: one with our label, one without."""
    if why_not():
        pytest.skip(why_not())
    folder = tmp_path_factory.mktemp("image")
    (folder / "trainer").mkdir()
    (folder / "trainer" / "__init__.py").touch()
    (folder / "trainer" / "__main__.py").write_text(TRAINER)
    (folder / "rmldnn").write_text(RMLDNN)
    (folder / "Dockerfile").write_text(RECIPE)
    client = engine.connect()
    label = {"org.rml-optimization.source": "of another time"}
    client.images.build(path=str(folder), tag=OURS, labels=label, rm=True)
    client.images.build(path=str(folder), tag=FOREIGN, rm=True)
    yield
    for image in (OURS, FOREIGN):
        client.images.remove(image, force=True)


@pytest.fixture
def study(tmp_path: Path, images: None) -> Iterator[Path]:
    """A study's folder; no container of it may be left after a test."""
    # The temporary folders of pytest are closed to others, and a trial here is another user.
    folder = tmp_path / "runs" / "a study, ü"
    folder.mkdir(parents=True)
    yield folder
    left = containers(folder)
    for container in left:
        engine.connect().api.remove_container(container["Id"], force=True)
    assert not left


def containers(study: Path) -> list[dict[str, Any]]:
    chosen = {"label": f"{LABEL}.study_folder={study}"}
    return list(engine.connect().api.containers(all=True, filters=chosen))


def job(study: Path, uid: int | None = None, trial: int = 0, **what: Any) -> Job:
    """A trial that does `what`; with `uid`, the run folder is that user's."""
    folder = study / f"trial-{trial:04d}"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(what))
    if uid is not None:
        os.chown(folder, uid, uid)
    inputs = tuple(Path(path) for path in [*what.get("inputs", []), *what.get("read", [])])
    return Job(folder, study.name, trial, threads=1, inputs=inputs)


def started(running: RunningContainer) -> dict[str, Any]:
    for _ in range(200):
        if events := running.poll():
            return events[0]
        time.sleep(0.05)
    raise AssertionError("the trial did not start")


# ------------------------------------------------------------------------------- what it can do


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make files of another user")
def test_trial_is_its_caller_and_can_do_little_else(study: Path, tmp_path: Path) -> None:
    data = tmp_path / "my data, 1"
    data.mkdir(mode=0o755)
    (data / "for the group.txt").write_text("read by the group")
    os.chown(data / "for the group.txt", 0, 4242)
    (data / "for the group.txt").chmod(0o640)
    (data / "for root.txt").write_text("read by root")
    (data / "for root.txt").chmod(0o600)
    os.chown(data, 1000, 1000)
    read = [str(data / "for the group.txt"), str(data / "for root.txt")]
    a_job = job(study, 1000, read=read, folder=str(data), inputs=[str(data)], code=4)
    running = DockerLauncher.open(OURS, CALLER).launch(a_job)
    assert running.wait(60) == 4
    (event,) = running.poll()
    assert (event["uid"], event["gid"], 4242 in event["groups"]) == (1000, 1000, True)
    assert event["read"] == ["read by the group", "PermissionError"]
    assert event["input"] == "OSError", "the input's owner cannot write it: read-only"
    assert event["cwd"] == str(a_job.run_folder)
    assert (event["capabilities"], event["new"]) == (0, "1")
    assert event["network"] == "OSError"
    assert event["interfaces"] == ["lo"]
    assert (event["root"], event["tmp"], event["home"]) == ("OSError", "done", "/tmp")
    assert event["threads"] == "1"
    assert event["argv"][:3] == ["--config=config.json", "--run-folder", "."]
    assert (a_job.run_folder / "metrics.jsonl").stat().st_uid == 1000
    assert (a_job.run_folder / STDERR_FILE).read_text() == "a warning\n"
    assert not (a_job.run_folder / HEARTBEAT_FILE).exists()


def test_trial_reads_through_links(study: Path, tmp_path: Path) -> None:
    store = tmp_path / "store" / "2024"
    store.mkdir(parents=True)
    (store / "1.png").write_text("one")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "2.png").symlink_to(store / "1.png")
    (tmp_path / "latest").symlink_to("store/2024")
    data = tmp_path / "data"
    data.mkdir()
    (data / "chain.png").symlink_to("../elsewhere/2.png")
    (data / "folder").symlink_to(tmp_path / "latest")
    read = [str(data / "chain.png"), str(data / "folder" / "1.png"), str(tmp_path / "latest/1.png")]
    running = DockerLauncher.open(OURS).launch(job(study, read=read, inputs=[str(data)]))
    assert running.wait(60) == 0
    assert running.poll()[0]["read"] == ["one", "one", "one"]


def test_trial_gets_its_cores_and_memory(study: Path) -> None:
    a_job = job(study, memory=2**29)
    limited = Job(a_job.run_folder, a_job.study, 0, cores=(0,), memory_bytes=2**27)
    running = DockerLauncher.open(OURS).launch(limited)
    assert running.wait(60) == 137
    assert running.poll()[0]["cores"] == 1


# ---------------------------------------------------------------------------------- how it ends


def test_stop_takes_a_moment(study: Path) -> None:
    running = DockerLauncher.open(OURS).launch(job(study, sleep=60))
    started(running)
    begin = time.monotonic()
    running.stop()
    assert running.exit_code == 3
    assert time.monotonic() - begin < 5
    assert [event["event"] for event in running.poll()] == ["end"]
    running.stop()


def test_several_trials_at_once(study: Path) -> None:
    launcher = DockerLauncher.open(OURS)
    jobs = [job(study, trial=trial, sleep=0.2, code=trial) for trial in range(4)]
    running = [launcher.launch(a_job) for a_job in jobs]
    assert [one.wait(60) for one in running] == [0, 1, 2, 3]


def test_very_short_trials_tell_how_they_ended(study: Path) -> None:
    launcher = DockerLauncher.open(FOREIGN)
    assert [launcher.launch(job(study, trial=trial)).wait(60) for trial in range(5)] == [9] * 5


def test_trial_that_is_removed_was_killed(study: Path) -> None:
    running = DockerLauncher.open(OURS).launch(job(study, sleep=60))
    started(running)
    running.container.remove(force=True)
    assert running.wait(20) == LOST


def test_nothing_is_left_when_the_start_fails(study: Path) -> None:
    launcher, threads = DockerLauncher.open(OURS), threading.active_count()
    a_job = job(study)
    with pytest.raises(InputError, match="nvidia-ctk runtime configure"):
        launcher.launch(Job(a_job.run_folder, a_job.study, 0, "cuda:0"))
    assert not containers(study)
    assert not (a_job.run_folder / HEARTBEAT_FILE).exists()
    time.sleep(0.5)
    assert threading.active_count() <= threads


DRIVER = """
import os, sys, time
from pathlib import Path
from launchers import Job
from launchers.docker import DockerLauncher
folder = Path(sys.argv[2])
running = DockerLauncher.open(sys.argv[1]).launch(Job(folder, "a study", 0))
while not (folder / "out_test.txt").exists() and not (folder / "metrics.jsonl").exists():
    time.sleep(0.05)
print("started", flush=True)
time.sleep(60)
"""


def kill_a_driver(image: str, a_job: Job) -> None:
    """Starts a trial from another process, and kills that process."""
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, image, str(a_job.run_folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    assert driver.stdout and driver.stdout.readline() == b"started\n"
    driver.send_signal(signal.SIGKILL)
    driver.communicate()


def test_trial_of_a_killed_driver_ends_and_leaves_nothing(study: Path) -> None:
    kill_a_driver(OURS, job(study, sleep=3))
    assert containers(study), "it runs on until its heartbeat is old, here until it has slept"
    for _ in range(100):
        if not containers(study):
            return
        time.sleep(0.1)
    raise AssertionError("the container is still there")


def test_reap_removes_what_a_dead_driver_left(study: Path) -> None:
    launcher = DockerLauncher.open(FOREIGN)
    (a_job := job(study)).run_folder.joinpath("sleep").touch()
    mine = launcher.launch(a_job)
    (another := job(study, trial=1)).run_folder.joinpath("sleep").touch()
    kill_a_driver(FOREIGN, another)
    labels = {f"{LABEL}.{key}": str(value) for key, value in owner.me().items()}
    labels |= {f"{LABEL}.study_folder": str(study), f"{LABEL}.start_time": "1"}
    client = engine.connect()
    client.containers.create(FOREIGN, "true", labels=labels)
    elsewhere = client.containers.create(
        FOREIGN, "true", labels={**labels, f"{LABEL}.host": "another host"}
    )
    assert len(containers(study)) == 4
    assert launcher.reap(study.parent) == 0, "another study"
    assert launcher.reap(study) == 2
    assert {container["Id"] for container in containers(study)} == {
        mine.container.id,
        elsewhere.id,
    }
    elsewhere.remove()
    mine.stop(0)


# ------------------------------------------------------------------------------ a foreign image


def test_foreign_image_is_read_from_out_test(study: Path) -> None:
    launcher = DockerLauncher.open(FOREIGN)
    assert launcher.foreign and not launcher.stale
    a_job = job(study)
    (a_job.run_folder / "out_test.txt").write_text("7 Accuracy: 0.9\n")
    running = launcher.launch(a_job)
    assert running.wait(60) == 9
    assert running.poll() == [
        {"event": "epoch", "epoch": 1, "accuracy": 0.5, "evaluated_on": "test"},
        {"event": "epoch", "epoch": 2, "accuracy": None, "evaluated_on": "test"},
    ]
    log = (a_job.run_folder / "trainer.log").read_text()
    assert sorted(log.splitlines()) == ["on stderr", "on stdout --config=config.json"]


def test_our_image_that_is_older_than_the_code(images: None) -> None:
    launcher = DockerLauncher.open(OURS)
    assert launcher.stale and not launcher.foreign


# ------------------------------------------------------------------------------------- messages


def test_image_that_is_not_there_is_not_pulled() -> None:
    with pytest.raises(InputError, match=r"docker pull nobody/nothing:1"):
        DockerLauncher.open("nobody/nothing:1")
    with pytest.raises(InputError, match="invalid reference"):
        DockerLauncher.open("No Image")


def test_probe_tells_why_there_is_no_gpu(images: None) -> None:
    reason = DockerLauncher.open(OURS).probe_gpu()
    assert reason and "NVIDIA Container Toolkit" in reason


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_user_without_the_right_is_told_so() -> None:
    program = (
        "import os, docker, requests, docker.context\n"
        "from launchers import engine\n"
        "os.setgroups([]), os.setuid(65534)\n"
        "engine.connect()"
    )
    told = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert "sudo usermod -aG docker $USER" in told.stderr
