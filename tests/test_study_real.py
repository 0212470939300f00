"""Studies with the real trainer: killed, interrupted, on a full disk, in containers."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from launchers import owner
from tests import studies

pytestmark = pytest.mark.slow

BUSI = studies.ROOT.parent / "shared/data/busi"
LIST = "list_acc.json"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return studies.make_data(tmp_path_factory.mktemp("data") / "data")


def options(here: Path, data: Path, *more: str) -> list[str]:
    """A study of the real trainer on tiny images."""
    network = str(studies.layers(here))
    return ["--data", str(data), "--layers", network, *studies.SMALL, "--study-name", "s", *more]


def begun(here: Path, *given: str) -> subprocess.Popen[str]:
    """A driver that goes on while the test looks."""
    return subprocess.Popen(
        [sys.executable, str(studies.ROOT / "rml_optimization.py"), *given],
        cwd=here,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(path: Path, text: str, seconds: float = 120) -> None:
    """Until the file has the text."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if path.exists() and text in path.read_text(errors="replace"):
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} has no {text}")


def listed(here: Path) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = json.loads((here / LIST).read_text())
    return content


def trials(here: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="s", storage=f"sqlite:///{here}/rml_study.db").trials


def number(text: str, name: str) -> float:
    """The number that the table at the end shows in the row `name`."""
    found = re.search(rf"\| {name}\s*\| ([0-9.]+)", text)
    assert found, text
    return float(found[1])


def test_study_use_and_review(data: Path, tmp_path: Path) -> None:
    given = options(tmp_path, data, "--num-trials", "2", "--num-epochs", "3")
    ended = studies.driver(tmp_path, *given)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    told = number(ended.stdout, "Test accuracy")
    environment = {**os.environ, "PYTHONPATH": str(studies.ROOT)}
    use = [sys.executable, "-m", "trainer", "--config=best_model/config_test.json"]
    used = subprocess.run(use, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert used.returncode == 0, used.stderr
    assert f"Accuracy: {told:.3f}" in used.stdout
    look = [sys.executable, "-m", "trainer.review", "predictions/output_1.h5"]
    subprocess.run(look, cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "predictions/output_1.png").stat().st_size > 10_000


def test_masks_of_0_and_1_give_the_same_numbers_as_0_and_255(tmp_path: Path) -> None:
    lists = []
    for value in (255, 1):
        here = tmp_path / str(value)
        here.mkdir()
        mine = studies.make_data(here / "data", value=value)
        ended = studies.driver(here, *options(here, mine, "--num-trials", "2"))
        assert ended.returncode == 0, ended.stderr
        kept = {"max_acc", "foreground_dice", "iou", "lr", "epoch_max_acc"}
        lists.append([{key: e[key] for key in kept} for e in listed(here)])
        lists[-1].append({"test": number(ended.stdout, "Test accuracy")})
    assert lists[0] == lists[1]


def test_killed_driver_leaves_no_process_and_resume_ends_every_number_once(
    data: Path, tmp_path: Path
) -> None:
    given = options(tmp_path, data, "--num-trials", "4", "--num-epochs", "100", "--no-prune")
    driver = begun(tmp_path, *given)
    third = tmp_path / "runs/s/trial-0002"
    wait_for(third / "metrics.jsonl", '"epoch"')
    child = json.loads((third / "process.json").read_text())
    assert owner.alive(child)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    end = time.monotonic() + 60
    while owner.alive(child) and time.monotonic() < end:
        time.sleep(0.2)
    assert not owner.alive(child)
    assert [t.state.name for t in trials(tmp_path)] == ["COMPLETE", "COMPLETE", "RUNNING"]
    # The settings of the study hold: a shorter one would be another one.
    shorter = studies.driver(tmp_path, "--study-name", "s", "--resume", "--num-epochs", "2")
    assert shorter.returncode == 2 and "--num-epochs 100 -> 2" in shorter.stderr
    ended = studies.driver(tmp_path, "--resume")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert [t.number for t in trials(tmp_path)] == [0, 1, 2, 3]
    assert all(t.state.name == "COMPLETE" for t in trials(tmp_path))
    assert [e["trial"] for e in listed(tmp_path)] == [0, 1, 2, 3]


def test_ctrl_c_and_second_driver(data: Path, tmp_path: Path) -> None:
    given = options(tmp_path, data, "--num-trials", "3", "--num-epochs", "5000")
    driver = begun(tmp_path, *given)
    wait_for(tmp_path / "runs/s/trial-0000/metrics.jsonl", '"epoch"')
    second = studies.driver(tmp_path, "--study-name", "s", "--resume", "--launcher", "process")
    assert second.returncode == 2 and "another driver runs it" in second.stderr
    child = json.loads((tmp_path / "runs/s/trial-0000/process.json").read_text())
    driver.send_signal(signal.SIGINT)
    out, _ = driver.communicate(timeout=60)
    assert driver.returncode == 130, out
    assert "--resume" in out and "Traceback" not in out
    assert not owner.alive(child)
    assert [t.state.name for t in trials(tmp_path)] == ["FAIL"]
    assert listed(tmp_path)[0]["cause"] == "interrupted"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_do_the_same(number: int, data: Path, tmp_path: Path) -> None:
    given = options(tmp_path, data, "--num-trials", "3", "--num-epochs", "5000")
    driver = begun(tmp_path, *given)
    wait_for(tmp_path / "runs/s/trial-0000/metrics.jsonl", '"epoch"')
    driver.send_signal(number)
    driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert [t.state.name for t in trials(tmp_path)] == ["FAIL"]


def test_second_ctrl_c_ends_at_once(data: Path, tmp_path: Path) -> None:
    given = options(tmp_path, data, "--num-trials", "3", "--num-epochs", "5000")
    driver = begun(tmp_path, *given)
    wait_for(tmp_path / "runs/s/trial-0000/metrics.jsonl", '"epoch"')
    child = json.loads((tmp_path / "runs/s/trial-0000/process.json").read_text())
    os.kill(int(child["pid"]), signal.SIGSTOP)  # it will not answer the first request
    driver.send_signal(signal.SIGINT)
    time.sleep(1)
    driver.send_signal(signal.SIGINT)
    driver.communicate(timeout=15)
    assert driver.returncode == 130
    end = time.monotonic() + 5
    while owner.alive(child) and time.monotonic() < end:  # killed, and not reaped yet
        time.sleep(0.05)
    assert not owner.alive(child)


def test_trial_stopped_from_outside_begins_again(data: Path, tmp_path: Path) -> None:
    given = options(tmp_path, data, "--num-trials", "1", "--num-epochs", "150")
    driver = begun(tmp_path, *given)
    wait_for(tmp_path / "runs/s/trial-0000/metrics.jsonl", '"epoch"')
    child = json.loads((tmp_path / "runs/s/trial-0000/process.json").read_text())
    os.kill(int(child["pid"]), signal.SIGTERM)
    out, _ = driver.communicate(timeout=120)
    assert driver.returncode == 0, out
    assert "was stopped from outside; it begins again" in out
    assert [(e["trial"], e["state"]) for e in listed(tmp_path)] == [(0, "COMPLETE")]
    assert sorted(trials(tmp_path)[0].intermediate_values) == list(range(1, 151))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder that is a disk of its own, for runs/s/trial-0001 to fill up."""
    folder = tmp_path / "runs"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("no right to mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk_fails_the_trial_and_loses_nothing(
    data: Path, tmp_path: Path, small_disk: Path
) -> None:
    network = {"network": "unet", "width": 16, "depth": 3, "activation": "sigmoid"}
    (tmp_path / "big.json").write_text(json.dumps(network))
    given = ["--data", str(data), "--layers", str(tmp_path / "big.json"), *studies.SMALL]
    ended = studies.driver(tmp_path, *given, "--study-name", "s", "--num-trials", "3")
    assert "Traceback" not in ended.stdout + ended.stderr
    causes = {t.user_attrs["cause"] for t in trials(tmp_path) if t.state.name == "FAIL"}
    assert causes and all("no space left" in cause for cause in causes), causes
    assert [e["state"] for e in listed(tmp_path)] == [t.state.name for t in trials(tmp_path)]


@pytest.fixture(scope="module")
def image() -> str:
    return studies.our_image()


def containers() -> list[str]:
    """Of studies, running or not."""
    command = ["docker", "ps", "-aq", "--filter", "label=org.rml-optimization.study=s"]
    return subprocess.run(command, capture_output=True, text=True).stdout.split()


@pytest.mark.docker
def test_study_in_containers_and_rmldnn(image: str, tmp_path: Path) -> None:
    mine = studies.make_data(tmp_path / "data")
    given = options(tmp_path, mine, "--num-trials", "2", "--launcher", "docker")
    ended = studies.driver(tmp_path, *given)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    told = number(ended.stdout, "Test accuracy")
    user = f"{os.getuid()}:{os.getgid()}"
    where = ["-u", user, "-v", f"{tmp_path}:/home/ubuntu", "-w", "/home/ubuntu"]
    use = ["docker", "run", "--rm", *where, image, "rmldnn", "--config=best_model/config_test.json"]
    used = subprocess.run(use, capture_output=True, text=True)
    assert f"Accuracy: {told:.3f}" in used.stdout, used.stdout + used.stderr
    import h5py

    with h5py.File(tmp_path / "predictions/output_1.h5") as predictions:
        names = list(predictions)
        assert names == sorted(p.name for p in (mine / "test/inputs").iterdir())
        for name in names:
            assert set(np.unique(predictions[name][0, :, :].round())) <= {0.0, 1.0}
    assert containers() == []


@pytest.mark.docker
def test_process_and_container_agree(image: str, data: Path, tmp_path: Path) -> None:
    lists = []
    for launcher in ("process", "docker"):
        here = tmp_path / launcher
        here.mkdir()
        given = options(here, data, "--num-trials", "1", "--launcher", launcher, "--threads", "1")
        assert studies.driver(here, *given).returncode == 0
        lists.append(listed(here)[0]["max_acc"])
    assert lists[0] == pytest.approx(lists[1], abs=1e-6)


@pytest.mark.docker
def test_killed_driver_leaves_no_container(image: str, data: Path, tmp_path: Path) -> None:
    given = options(
        tmp_path, data, "--num-trials", "2", "--num-epochs", "300", "--launcher", "docker"
    )
    driver = begun(tmp_path, *given)
    wait_for(tmp_path / "runs/s/trial-0000/metrics.jsonl", '"epoch"')
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    end = time.monotonic() + 60
    while containers() and time.monotonic() < end:
        time.sleep(0.5)
    assert containers() == []
    again = ("--study-name", "s", "--resume", "--launcher", "docker")
    ended = studies.driver(tmp_path, *again)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert [(t.number, t.state.is_finished()) for t in trials(tmp_path)] == [(0, True), (1, True)]


@pytest.mark.docker
def test_foreign_image(image: str, tmp_path: Path) -> None:
    mine = studies.make_data(tmp_path / "data")
    folder = tmp_path / "foreign"
    folder.mkdir()
    (folder / "rmldnn").write_text(
        "#!/usr/bin/python3\n"
        "import json, pathlib\n"
        "config = json.load(open('config.json'))['neural_network']\n"
        "assert 'split' not in config['data'] and 'test_input_path' in config['data']\n"
        "pathlib.Path('checkpoints').mkdir(exist_ok=True)\n"
        "with open('out_test.txt', 'w') as log:\n"
        "    for epoch in range(1, config['num_epochs'] + 1):\n"
        "        pathlib.Path(f'checkpoints/model_checkpoint_{epoch}.pt').write_text(str(epoch))\n"
        "        log.write(f'Epoch {epoch} Loss: 0.5 Accuracy: {0.5 + 0.1 * epoch:.3f}\\n')\n"
    )
    (folder / "rmldnn").chmod(0o755)
    (folder / "Dockerfile").write_text(
        'FROM python:3.11-slim\nCOPY rmldnn /usr/local/bin/rmldnn\nCMD ["true"]\n'
    )
    name = "rml-test-foreign"
    subprocess.run(["docker", "build", "-q", "-t", name, str(folder)], check=True)
    try:
        shared = options(tmp_path, mine, "--num-trials", "2")
        shared[shared.index("--launcher") + 1] = "docker"
        refused = studies.driver(tmp_path, *shared, "--docker-image", name)
        assert refused.returncode == 2 and "--select-on test" in refused.stderr
        chosen = ("--docker-image", name, "--select-on", "test")
        ended = studies.driver(tmp_path, *shared, *chosen)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert [(e["max_acc"], e["epoch_max_acc"]) for e in listed(tmp_path)] == [(0.7, 2)] * 2
        assert (tmp_path / "best_model/best_model_file.pt").read_text() == "2"
        config = json.loads((tmp_path / "best_model/config_test.json").read_text())
        assert config["neural_network"]["layers"] == "best_model/layers.json"
    finally:
        subprocess.run(["docker", "rmi", "-f", name], capture_output=True)


@pytest.mark.skipif(not BUSI.is_dir(), reason="no breast ultrasound images here")
def test_breast_images_reach_the_promised_scores(tmp_path: Path) -> None:
    given = ("--num-trials", "6", "--num-epochs", "4", "--image-size", "64")
    shared = ("--layers", "layers/unet_small.json", "--launcher", "process")
    ended = studies.driver(tmp_path, "--data", str(BUSI), *given, *shared, timeout=800)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert number(ended.stdout, "Test accuracy") >= 0.70
    assert number(ended.stdout, "Test foreground Dice") >= 0.45


def test_dashboard_shows_the_study_while_it_runs(data: Path, tmp_path: Path) -> None:
    given = options(tmp_path, data, "--num-trials", "2", "--num-epochs", "2000")
    driver = begun(tmp_path, *given)
    dashboard = None
    try:
        wait_for(tmp_path / "runs/s/trial-0000/metrics.jsonl", '"epoch"')
        program = str(Path(sys.executable).with_name("optuna-dashboard"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [program, "--port", str(port), "sqlite:///rml_study.db"]
        dashboard = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 60
        studies_told: list[dict[str, Any]] = []
        while not studies_told and time.monotonic() < end:
            time.sleep(0.5)
            with suppress(OSError):
                address = f"http://127.0.0.1:{port}/api/studies"
                studies_told = json.load(urllib.request.urlopen(address))["study_summaries"]
        assert [told["study_name"] for told in studies_told] == ["s"]
        assert driver.poll() is None
    finally:
        if dashboard:
            dashboard.kill()
        driver.send_signal(signal.SIGINT)
        driver.communicate(timeout=60)
