"""The launchers without a Docker engine: children, fakes, links, arguments, messages."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launchers import Job, engine, owner
from launchers.container import Caller, Image, container_arguments
from launchers.docker import DockerLauncher, RunningContainer
from launchers.fake import FakeLauncher
from launchers.foreign import OutTestReader, epoch_event
from launchers.image import SOURCE_LABEL, source_hash
from launchers.mounts import MOST_FILES, hops, mounts
from launchers.process import ProcessLauncher, child_environment
from launchers.run_folder import gpu_name
from trainer.errors import InputError
from trainer.events import HEARTBEAT_FILE, PROCESS_FILE, STDERR_FILE

ROOT = Path(__file__).resolve().parent.parent

TRAINER = """
import json, os, signal, sys, time
def tell(**event):
    with open("metrics.jsonl", "a") as file:
        file.write(json.dumps(event) + "\\n")
def stop(*_):
    tell(event="end", reason="stopped")
    sys.exit(3)
what = json.load(open("config.json"))
signal.signal(signal.SIGTERM, signal.SIG_IGN if what["do"] == "ignore" else stop)
names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
tell(event="start", argv=sys.argv[1:], cwd=os.getcwd(), session=os.getsid(0), path=sys.path[0],
     environment={name: os.environ.get(name) for name in names}, cores=len(os.sched_getaffinity(0)))
print("to nobody")
print("a warning", file=sys.stderr, flush=True)
if what["do"] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if what["do"] in ("sleep", "ignore"):
    time.sleep(60)
sys.exit(what.get("code", 0))
"""


@pytest.fixture
def launcher(tmp_path: Path) -> ProcessLauncher:
    """A process launcher with a small program in the trainer's place."""
    package = tmp_path / "program" / "trainer"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(TRAINER)
    return ProcessLauncher(program=tmp_path / "program")


def job(tmp_path: Path, do: str = "nothing", **changes: object) -> Job:
    folder = tmp_path / "runs" / "a study" / "trial-0000"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"do": do, "code": changes.pop("code", 0)}))
    return Job(folder, "a study", 0, **changes)  # type: ignore[arg-type]


def started(running: object) -> dict[str, object]:
    """The start event, which a trial writes when it is ready to be stopped."""
    for _ in range(200):
        if events := running.poll():  # type: ignore[attr-defined]
            return dict(events[0])
        time.sleep(0.05)
    raise AssertionError("the trial did not start")


# ------------------------------------------------------------------------------------- a child


def test_child_runs_in_its_run_folder_with_its_threads(
    launcher: ProcessLauncher, tmp_path: Path
) -> None:
    a_job = job(tmp_path, threads=2, cores=(0,), code=4)
    (a_job.run_folder / "json.py").write_text("raise SystemExit('a stand-in was imported')")
    running = launcher.launch(a_job)
    assert running.wait(20) == 4
    (start,) = running.poll()
    assert start["cwd"] == str(a_job.run_folder)
    assert start["argv"] == [
        *("--config=config.json", "--run-folder", ".", "--trust-code", "--device", "cpu"),
        *("--threads", "2"),
        *("--parent-pid", str(os.getpid())),
    ]
    assert start["environment"] == {
        "OMP_NUM_THREADS": "2",
        "MKL_NUM_THREADS": "2",
        "CUDA_VISIBLE_DEVICES": "",
    }
    assert start["cores"] == 1
    assert start["session"] == running.pid != os.getsid(0)
    assert (a_job.run_folder / STDERR_FILE).read_text() == "a warning\n"
    left = {path.name for path in a_job.run_folder.iterdir()}
    assert not left & {PROCESS_FILE, HEARTBEAT_FILE}


def test_child_that_is_killed_ends_with_137(launcher: ProcessLauncher, tmp_path: Path) -> None:
    assert launcher.launch(job(tmp_path, "kill")).wait(20) == 137


def test_stop_asks_first(launcher: ProcessLauncher, tmp_path: Path) -> None:
    running = launcher.launch(job(tmp_path, "sleep"))
    started(running)
    running.stop(20)
    assert running.exit_code == 3
    assert [event["event"] for event in running.poll()] == ["end"]


def test_stop_kills_after_its_grace(launcher: ProcessLauncher, tmp_path: Path) -> None:
    running = launcher.launch(job(tmp_path, "ignore"))
    started(running)
    with pytest.raises(TimeoutError):
        running.wait(0.1)
    running.stop(grace_seconds=0.2)
    assert running.exit_code == 137


def test_the_heart_beats_while_the_driver_does_nothing(
    launcher: ProcessLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launchers.run_folder.HEARTBEAT_SECONDS", 0.05)
    a_job = job(tmp_path, "sleep")
    running = launcher.launch(a_job)
    heartbeat = a_job.run_folder / HEARTBEAT_FILE
    os.utime(heartbeat, (0, 0))
    time.sleep(0.5)
    assert time.time() - heartbeat.stat().st_mtime < 5
    running.stop(0)
    time.sleep(0.2)
    assert not heartbeat.exists(), "the last beat does not bring it back"
    assert "heartbeat" not in {thread.name for thread in threading.enumerate()}


def test_a_start_that_fails_leaves_no_heartbeat(tmp_path: Path) -> None:
    a_job = job(tmp_path)
    with pytest.raises(FileNotFoundError):
        ProcessLauncher(("/no/such/program",)).launch(a_job)
    assert not (a_job.run_folder / HEARTBEAT_FILE).exists()


def test_kill_does_not_wait_and_takes_no_lock(launcher: ProcessLauncher, tmp_path: Path) -> None:
    running = launcher.launch(job(tmp_path, "ignore"))
    started(running)

    def handle(*_: object) -> None:
        running.kill()

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        with running._child._waitpid_lock:  # type: ignore[attr-defined]  # as in the midst of poll
            os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert running.wait(10) == 137
    running.kill()


@pytest.mark.parametrize("name", [STDERR_FILE, HEARTBEAT_FILE])
@pytest.mark.parametrize("trap", ["link", "pipe"])
def test_files_of_the_run_folder_lead_nowhere(
    launcher: ProcessLauncher, tmp_path: Path, name: str, trap: str
) -> None:
    victim, a_job = tmp_path / "victim", job(tmp_path)
    victim.write_text("mine")
    os.utime(victim, (0, 0))
    if trap == "link":
        (a_job.run_folder / name).symlink_to(victim)
    else:
        os.mkfifo(a_job.run_folder / name)
    with pytest.raises(InputError, match="not a plain file"):
        launcher.launch(a_job)
    assert (victim.read_text(), victim.stat().st_mtime) == ("mine", 0)


def test_the_process_file_replaces_a_link(launcher: ProcessLauncher, tmp_path: Path) -> None:
    victim, a_job = tmp_path / "victim", job(tmp_path)
    victim.write_text("mine")
    (a_job.run_folder / f"{PROCESS_FILE}.new").symlink_to(victim)
    (a_job.run_folder / PROCESS_FILE).symlink_to(victim)
    assert launcher.launch(a_job).wait(20) == 0
    assert victim.read_text() == "mine"


def test_reap_kills_what_a_dead_driver_left(launcher: ProcessLauncher, tmp_path: Path) -> None:
    a_job = job(tmp_path, "sleep")
    running = launcher.launch(a_job)
    file, study = a_job.run_folder / PROCESS_FILE, a_job.run_folder.parent
    assert launcher.reap(study) == 0, "its driver is this process, which lives"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "driver": {**record["driver"], "start_time": "1"}}))
    assert launcher.reap(study) == 1
    assert running.wait(10) == 137
    assert not file.exists()


def test_reap_spares_another_process_with_the_same_number(
    launcher: ProcessLauncher, tmp_path: Path
) -> None:
    folder = tmp_path / "trial-0000"
    folder.mkdir()
    dead = {**owner.me(), "start_time": "1"}
    (folder / PROCESS_FILE).write_text(json.dumps({**dead, "driver": dead}))
    assert launcher.reap(tmp_path) == 0
    assert not (folder / PROCESS_FILE).exists()
    elsewhere = {**dead, "host": "another host"}
    (folder / PROCESS_FILE).write_text(json.dumps({**elsewhere, "driver": elsewhere}))
    assert launcher.reap(tmp_path) == 0
    assert (folder / PROCESS_FILE).exists()


@pytest.mark.parametrize(
    ("device", "visible", "gpu"),
    [
        ("cpu", None, None),
        ("cuda:1", None, "1"),
        ("cuda:1", "3,5", "5"),
        ("cuda:0", "GPU-8f1c", "GPU-8f1c"),
    ],
)
def test_gpu_counts_those_that_the_driver_may_use(
    device: str, visible: str | None, gpu: str | None
) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert gpu_name(device, environment) == gpu
    child = child_environment(Job(Path("/run"), "s", 0, device), Path("/program"), environment)
    assert child["CUDA_VISIBLE_DEVICES"] == (gpu or "")
    assert child["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize("visible", ["3,5", ""])
def test_gpu_that_the_driver_may_not_use(visible: str) -> None:
    with pytest.raises(InputError, match="cuda:2"):
        gpu_name("cuda:2", {"CUDA_VISIBLE_DEVICES": visible})


# --------------------------------------------------------------------------------------- owner


def test_owner_is_alive_until_it_ends() -> None:
    assert owner.alive(owner.me())
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    its = owner.of(child.pid)
    assert json.loads(json.dumps(its)) == its
    assert owner.alive(its)
    assert not owner.alive({**its, "start_time": "1"}), "another process with its number"
    child.send_signal(signal.SIGKILL)
    time.sleep(0.2)
    assert not owner.alive(its), "a zombie is not alive"
    child.communicate()
    assert not owner.alive(its)


def test_owner_on_another_host_counts_as_alive() -> None:
    assert owner.alive({"host": "another host", "pid": 1, "start_time": ""})


# ---------------------------------------------------------------------------------------- fake


def test_fake_follows_its_script(tmp_path: Path) -> None:
    launcher = FakeLauncher(lambda job: [{"event": "epoch", "epoch": job.trial}, 4])
    running = launcher.launch(Job(tmp_path, "s", 7))
    assert running.exit_code is None
    assert running.poll() == [{"event": "epoch", "epoch": 7}]
    assert running.poll() == []
    assert running.exit_code == 4


def test_fake_waits_and_stops(tmp_path: Path) -> None:
    launcher = FakeLauncher(lambda job: [{"event": "epoch"}, {"event": "end"}])
    running = launcher.launch(Job(tmp_path, "s", 0))
    assert running.wait() == 0
    assert [event["event"] for event in running.poll()] == ["epoch", "end"]
    running = launcher.launch(Job(tmp_path, "s", 1))
    running.stop()
    assert (running.exit_code, running.poll()) == (3, [])
    running.kill()
    assert running.exit_code == 3
    running = launcher.launch(Job(tmp_path, "s", 2))
    running.kill()
    assert (running.exit_code, running.poll()) == (137, [])


# ------------------------------------------------------------------------------- foreign images


@pytest.mark.parametrize(
    ("line", "epoch", "accuracy"),
    [
        ("Epoch: 3 Loss: 0.6603 Accuracy: 0.711", 3, 0.711),
        ("  12 | Loss = 1e-05 | Accuracy: 1", 12, 1.0),
        ("2 Loss: nan Accuracy: nan", 2, None),
        ("2 Loss: nan Accuracy: -nan", 2, None),
        ("2 Loss: 0.5 Accuracy: inf", 2, None),
    ],
)
def test_line_of_out_test(line: str, epoch: int, accuracy: float | None) -> None:
    told = {"event": "epoch", "epoch": epoch, "accuracy": accuracy, "evaluated_on": "test"}
    assert epoch_event(line) == told


def test_line_without_accuracy_tells_nothing() -> None:
    assert epoch_event("3 Loss: 0.5") is None
    assert epoch_event("Accuracy:") is None


def test_out_test_is_read_by_whole_lines(tmp_path: Path) -> None:
    file = tmp_path / "out_test.txt"
    reader = OutTestReader(file)
    assert reader.new() == []
    file.write_text("1 Accuracy: 0.5\n2 Accuracy: 0.")
    assert [event["epoch"] for event in reader.new()] == [1]
    file.write_text("1 Accuracy: 0.5\n2 Accuracy: 0.75\n")
    assert [event["accuracy"] for event in reader.new()] == [0.75]


# --------------------------------------------------------------------------------------- links


def test_mounts_of_plain_folders(tmp_path: Path) -> None:
    for name in ("data/train", "data/test", "dat"):
        (tmp_path / name).mkdir(parents=True)
    inputs = [tmp_path / name for name in ("data", "data/train", "dat", "data/test")]
    assert mounts(inputs, tmp_path / "run") == [tmp_path / "dat", tmp_path / "data"]


def test_mounts_follow_links_hop_by_hop(tmp_path: Path) -> None:
    real = tmp_path / "store" / "2024" / "images"
    real.mkdir(parents=True)
    (tmp_path / "latest").symlink_to(tmp_path / "store" / "2024")
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "data").symlink_to("../latest")
    given = tmp_path / "project" / "data" / "images"
    assert hops(given) == [given, tmp_path / "latest" / "images", real]
    assert mounts([given], tmp_path / "run") == sorted(hops(given))
    # With the folder around the link: the link is there as a link, and leads to what is mounted.
    found = mounts([tmp_path / "project", given], tmp_path / "run")
    assert found == sorted([tmp_path / "latest", tmp_path / "project", tmp_path / "store" / "2024"])


def test_mounts_of_links_in_an_input_folder(tmp_path: Path) -> None:
    for name in ("data/deep", "store/a", "store/b", "masks/more", "far"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "store/a/1.png").touch()
    (tmp_path / "store/b/2.png").symlink_to("../a/1.png")
    (tmp_path / "far/3.png").touch()
    (tmp_path / "data/1.png").symlink_to(tmp_path / "store/a/1.png")
    (tmp_path / "data/deep/2.png").symlink_to("../../store/b/2.png")
    (tmp_path / "data/masks").symlink_to("../masks")
    (tmp_path / "masks/more/3.png").symlink_to(tmp_path / "far/3.png")
    (tmp_path / "data/nothing.png").symlink_to("/nowhere/at/all.png")
    (tmp_path / "data/circle").symlink_to("circle")
    expected = ["data", "far/3.png", "masks", "store/a/1.png", "store/b/2.png"]
    assert mounts([tmp_path / "data"], tmp_path / "run") == [tmp_path / name for name in expected]


def many(folder: Path, count: int, links: Path) -> list[Path]:
    """`count` files in a folder, each with a link in `links`."""
    folder.mkdir(parents=True, exist_ok=True)
    links.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number}.png" for number in range(count)]
    for file in files:
        file.touch()
        (links / file.name).symlink_to(file)
    return files


def test_mounts_of_many_links_are_their_folder(tmp_path: Path) -> None:
    files = many(tmp_path / "few", MOST_FILES, tmp_path / "data/few")
    many(tmp_path / "many", MOST_FILES + 1, tmp_path / "data/many")
    found = mounts([tmp_path / "data"], tmp_path / "run")
    assert found == sorted([tmp_path / "data", tmp_path / "many", *files])


def test_mounts_never_show_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "homes/me"))
    (tmp_path / "homes/me/data").mkdir(parents=True)
    data = tmp_path / "homes/me/data"
    mine = many(tmp_path / "homes/me", MOST_FILES + 9, data / "mine")
    above = many(tmp_path / "homes", MOST_FILES + 9, data / "above")
    (tmp_path / "way").symlink_to(tmp_path / "homes")
    (data / "a folder").symlink_to(tmp_path / "way/me")
    assert mounts([data], tmp_path / "run") == sorted([data, *mine, *above])


def test_mounts_leave_the_run_folder_writable(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "s" / "trial-0000"
    run.mkdir(parents=True)
    (run / "network.json").touch()
    assert mounts([run / "network.json", run], run) == []
    # A folder around it stays: the run folder is mounted over it.
    assert mounts([tmp_path, run / "network.json"], run) == [tmp_path]


def test_mounts_spare_the_folders_of_the_container(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="would hide"):
        mounts([Path("/tmp")], tmp_path)
    with pytest.raises(InputError, match="not there"):
        mounts([tmp_path / "nothing"], tmp_path / "run")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "passwd").symlink_to("/etc/passwd")
    assert mounts([tmp_path / "data"], tmp_path / "run") == [
        Path("/etc/passwd"),
        tmp_path / "data",
    ]


# ---------------------------------------------------------------------------------- containers

OURS = Image("rml-trainer", "sha256:1", "a hash")
CALLER = Caller(1000, 1000, (1000, 4242))
ENGINE = {"SecurityOptions": ["name=seccomp,profile=default"], "MemTotal": 1000, "NCPU": 8}


def test_container_of_a_trial() -> None:
    run = Path("/runs/mit Leerzeichen, ü/trial-0000")
    a_job = Job(run, "s", 7, "cuda:2", threads=3, cores=(0, 3))
    made = container_arguments(a_job, OURS, CALLER, ENGINE, [Path("/a,b")], gpu="2")
    assert (made["user"], made["group_add"]) == ("1000:1000", ["4242"])
    assert made["command"] == [
        *("python", "-m", "trainer", "--config=config.json", "--run-folder", ".", "--trust-code"),
        *("--device", "cuda:0", "--threads", "3"),
    ]
    assert (made["image"], made["working_dir"]) == ("sha256:1", str(run))
    mounted = [(mount["Source"], mount["Target"], mount["ReadOnly"]) for mount in made["mounts"]]
    assert mounted == [("/a,b", "/a,b", True), (str(run), str(run), False)]
    assert made["network_mode"] == "none"
    assert made["read_only"] and made["init"]
    assert made["cap_drop"] == ["ALL"]
    assert made["security_opt"] == ["no-new-privileges"]
    assert made["mem_limit"] == made["memswap_limit"] == 900
    assert made["cpuset_cpus"] == "0,3"
    assert made["device_requests"][0]["DeviceIDs"] == ["2"]
    assert made["environment"]["OMP_NUM_THREADS"] == "3"
    label = "org.rml-optimization."
    assert made["labels"][label + "study_folder"] == str(run.parent)
    assert made["labels"][label + "pid"] == str(os.getpid())
    assert "userns_mode" not in made


def test_container_of_a_foreign_image_gets_the_published_command() -> None:
    foreign = Image("rocketml/rmldnn", "sha256:2", None)
    a_job = Job(Path("/runs/s/t"), "s", 0, cores=(9,), memory_bytes=5)
    made = container_arguments(a_job, foreign, CALLER, ENGINE)
    assert made["command"] == ["rmldnn", "--config=config.json"]
    assert made["mem_limit"] == 5
    assert "device_requests" not in made
    assert "cpuset_cpus" not in made, "the engine's machine has 8 cores"


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("name=rootless", {"user": "0:0", "group_add": []}),
        ("name=selinux", {"security_opt": ["no-new-privileges", "label=disable"]}),
        ("name=userns", {"userns_mode": "host", "user": "1000:1000"}),
    ],
)
def test_container_suits_the_engine(option: str, expected: dict[str, object]) -> None:
    info = {**ENGINE, "SecurityOptions": ["name=seccomp,profile=default", option]}
    made = container_arguments(Job(Path("/runs/s/t"), "s", 0), OURS, CALLER, info)
    assert {key: made[key] for key in expected} == expected


# ------------------------------------------------------------------------------------ messages


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A path where an engine might listen, given by DOCKER_HOST."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/d.sock")
    return tmp_path / "d.sock"


def test_no_docker_at_all(address: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(address.parent))
    with pytest.raises(InputError, match=r"(?s)no Docker on this machine.*--launcher process"):
        engine.connect()


def test_engine_stopped(address: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = address.parent / "docker"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(address.parent))
    with pytest.raises(InputError, match="does not run"):
        engine.connect()
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(address))
    with pytest.raises(InputError, match=r"(?s)does not run.*it is at"):
        engine.connect()
    usual = engine.connection_error("unix:///var/run/docker.sock", ConnectionRefusedError())
    if sys.platform.startswith("linux"):
        assert "sudo systemctl start docker" in usual.fix


def test_no_right_to_the_socket() -> None:
    error = engine.connection_error("unix:///var/run/docker.sock", PermissionError())
    assert "sudo usermod -aG docker $USER" in str(error)


def test_something_else_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    with pytest.raises(InputError, match="does not answer"):
        engine.connect()
    monkeypatch.setenv("DOCKER_HOST", "nonsense://")
    with pytest.raises(InputError, match="does not answer"):
        engine.connect()
    monkeypatch.delenv("DOCKER_HOST")
    monkeypatch.setenv("DOCKER_CONTEXT", "nowhere")
    with pytest.raises(InputError, match="no Docker context 'nowhere'"):
        engine.connect()


def test_image_that_is_not_there() -> None:
    assert engine.image_error("rml-trainer:latest").fix == "make image"
    assert engine.image_error("rocketml/rmldnn").fix == "docker pull rocketml/rmldnn"


@pytest.mark.parametrize(
    ("message", "fix"),
    [
        ('could not select device driver "" with capabilities: [[gpu]]', "nvidia-ctk runtime"),
        ("nvidia-container-cli: device error: 9: unknown device", "nvidia-smi"),
        ("invalid mount config: bind source path does not exist: /data", "--launcher process"),
        ("something new", "docker info"),
    ],
)
def test_container_that_does_not_start(message: str, fix: str) -> None:
    assert fix in engine.start_error(message).fix


class Engine:
    """Stands in for docker's client: containers that never end."""

    def __init__(self, info: Any = None) -> None:
        self._info, self.made, self.removed = info, [], []
        self.containers = SimpleNamespace(create=self.create)
        self.api = SimpleNamespace(
            remove_container=lambda name, force: self.removed.append(name),
            containers=lambda all, filters: [
                made
                for made in self.made
                if filters["label"][0].partition("=")[0] in made["Labels"]
            ],
        )

    def info(self) -> Any:
        if isinstance(self._info, Exception):
            raise self._info
        return self._info or {}

    def create(self, labels: dict[str, str], **_: Any) -> Any:
        from requests.exceptions import ConnectionError

        def wait(timeout: float) -> None:
            time.sleep(timeout)
            raise ConnectionError("Read timed out.")

        self.made.append({"Id": str(len(self.made)), "Labels": labels})
        return SimpleNamespace(id=self.made[-1]["Id"], start=lambda: None, wait=wait)


def test_a_probe_that_hangs_is_ended_and_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launchers.docker.PROBE_SECONDS", 0.1)
    client: Any = Engine()
    reason = DockerLauncher(client, OURS, CALLER).probe_gpu()
    assert reason == "a container of 'rml-trainer' did not find cuda:0 within 0.1 s"
    assert client.removed == ["0"]


def test_a_probe_that_was_left_is_reaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launchers.docker.PROBE_SECONDS", 0.0)
    client: Any = Engine()
    launcher = DockerLauncher(client, OURS, CALLER)
    launcher.probe_gpu()
    client.removed.clear()
    assert (launcher.reap(tmp_path), client.removed) == (0, []), "its driver lives"
    client.made[0]["Labels"]["org.rml-optimization.start_time"] = "1"
    assert (launcher.reap(tmp_path), client.removed) == (0, ["0"])


def test_an_engine_that_goes_away_at_the_start() -> None:
    from requests.exceptions import ConnectionError

    client: Any = Engine(ConnectionError("gone"))
    with pytest.raises(InputError, match="does not answer"):
        DockerLauncher(client, OURS, CALLER)


def test_what_a_container_says_goes_into_a_plain_file_only(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / STDERR_FILE).symlink_to(victim)
    container: Any = SimpleNamespace(attach=lambda **_: iter([b"all yours"]))
    heartbeat: Any = None
    with pytest.raises(InputError, match="not a plain file"):
        RunningContainer(container, tmp_path, heartbeat, reads_out_test=False, writes_log=True)
    assert victim.read_text() == "mine"


# --------------------------------------------------------------------------------------- image


def test_source_hash_is_that_of_the_sources(tmp_path: Path) -> None:
    (tmp_path / "trainer" / "data").mkdir(parents=True)
    (tmp_path / "Dockerfile").write_text("FROM scratch\n# " + SOURCE_LABEL)
    (tmp_path / "trainer" / "data" / "a.py").write_text("1")
    first = source_hash(tmp_path)
    (tmp_path / "trainer" / "__pycache__").mkdir()
    (tmp_path / "trainer" / "__pycache__" / "a.cpython-311.pyc").touch()
    assert source_hash(tmp_path) == first
    (tmp_path / "trainer" / "data" / "a.py").rename(tmp_path / "trainer" / "a.py")
    assert source_hash(tmp_path) != first


def test_image_module_prints_the_hash() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "launchers.image"], cwd=ROOT, capture_output=True, text=True
    )
    assert told.stdout.strip() == source_hash()


def test_launchers_import_neither_torch_nor_docker() -> None:
    program = (
        "import launchers.docker, launchers.process, launchers.fake, sys\n"
        "sys.exit(bool({'torch', 'docker', 'optuna'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
