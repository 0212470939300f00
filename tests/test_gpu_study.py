"""The GPU benchmark's arithmetic: times from a run folder, rates, and the page."""

from __future__ import annotations

import json
import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu_study  # noqa: E402
import run_times  # noqa: E402

BEGAN = 1_800_000_000.0
PROBED = {
    "flop_an_image": 2e9,
    "peak_flop_a_second": 1e12,
    "peak_of": "float32 matrices of 2048x2048",
    "parameters": 486_553,
    "hardware": "Some GPU",
    "software": "2 cores of Some CPU, torch 2.13.0",
}


def stamp(seconds: float) -> str:
    return datetime.fromtimestamp(BEGAN + seconds).strftime("[%Y-%b-%d %H:%M:%S.%f] ")


def record_run(folder: Path, exit_code: int = 0, batches: bool = True) -> Path:
    """A trial of 40 images, launched at 0 s: 2 s of start, 3 s of reading, two epochs, 1 s after.

    An epoch: 10 s training, 4 s evaluation, 0.5 s checkpoint. It ends at 35 s.
    """
    folder.mkdir(parents=True)
    log = [(2.0, "Pre-loading 40 images..."), (3.5, "Pre-loading 8 images...")]
    logged, events = [], []
    for epoch, at in ((1, 5.0), (2, 19.5)):
        log.append((at + 10, f"Train Epoch [{epoch:3d}/  2] : Batch [    4/    4] (Loss = 0.5)"))
        log.append((at + 14, f"Eval  Epoch [{epoch:3d}/  2] : Batch [    1/    1]"))
        log.append((at + 14.5, "-" * 45))
        logged.append(f"{at + 10 - 5:.3f} {epoch} 4 0.5 0.1")
        events.append({"event": "epoch", "epoch": epoch, "seconds": 14.0})
    text = [stamp(0.5) + "---- Device(s) ----", *(stamp(at) + line for at, line in log)]
    (folder / "trainer.log").write_text("\n".join(["Traceback-like line", *text]) + "\n")
    started = {"event": "start", "images": {"training": 40, "test": 8}}
    lines = [json.dumps(event) for event in (started, *events)] if batches else []
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    (folder / "config.json").write_text("{}")
    (folder / "result.json").write_text(json.dumps({"exit_code": exit_code}))
    (folder / "out_train.txt").write_text("\n".join(logged) + "\n" if batches else "")
    for name, at in (("config.json", 0.0), ("out_train.txt", 29.5), ("result.json", 35.0)):
        os.utime(folder / name, (BEGAN + at, BEGAN + at))
    return folder


def test_the_time_of_a_trial_is_told_apart(tmp_path: Path) -> None:
    trial = run_times.read_trial(record_run(tmp_path / "trial-0000"))
    assert trial
    assert (trial.images, trial.epoch_seconds) == (40, [14.0, 14.0])
    assert trial.parts == pytest.approx(
        {
            "start": 2.0,
            "loading": 3.0,
            "training": 20.0,
            "evaluation": 8.0,
            "checkpoints": 2.0,  # two of half a second, and one after the last epoch
            "unfinished": 0.0,
            "test": 0.0,
            "driver": 0.0,
        },
        abs=0.01,
    )
    assert sum(trial.parts.values()) == pytest.approx(trial.span) == 35.0


def test_what_a_cut_trial_did_after_its_last_epoch_is_lost(tmp_path: Path) -> None:
    trial = run_times.read_trial(record_run(tmp_path / "trial-0000", exit_code=3))
    assert trial
    assert trial.parts["unfinished"] == pytest.approx(1.0, abs=0.01)
    early = run_times.read_trial(record_run(tmp_path / "trial-0001", 3, batches=False))
    assert early
    assert early.parts["unfinished"] == pytest.approx(33.0, abs=0.01)
    assert early.epoch_seconds == []


def test_a_killed_trial_has_no_times(tmp_path: Path) -> None:
    folder = record_run(tmp_path / "trial-0000")
    (folder / "result.json").unlink()
    assert run_times.read_trial(folder) is None


def test_every_second_of_the_wall_time_is_accounted_for(tmp_path: Path) -> None:
    for name in ("trial-0000", "trial-0001", "test-0000"):
        record_run(tmp_path / name)
    told = gpu_study.breakdown(tmp_path, 150.0, PROBED)
    assert sum(told["parts_seconds"].values()) == pytest.approx(150.0)
    assert told["parts_seconds"]["test"] == pytest.approx(35.0)
    assert told["parts_seconds"]["driver"] == pytest.approx(150.0 - 3 * 35.0)
    assert (told["trials"], told["epochs"]) == (2, 4)
    images = 4 * 40
    assert told["images_a_second_training"] == pytest.approx(images / 40.0, rel=1e-3)
    assert told["images_a_second_epochs"] == pytest.approx(images / 56.0, rel=1e-3)
    assert told["images_a_second_end_to_end"] == pytest.approx(images / 150.0)
    assert told["share_of_peak"] == pytest.approx(4.0 * 2e9 / 1e12, rel=1e-3)


def result_of(folder: Path, device: str, wall_seconds: float) -> dict[str, Any]:
    asked = gpu_study.parse(["--device", device, "--layers", "/somewhere/layers/resunet.json"])
    call = {"began": 0.0, "ended": wall_seconds, "host_memory_bytes": 2e9, "gpu_memory_bytes": 3e9}
    (folder / "calls.json").write_text(json.dumps([call]))
    return gpu_study.report(asked, folder, PROBED)


def test_the_page_of_a_gpu(tmp_path: Path) -> None:
    study = tmp_path / "runs" / gpu_study.STUDY
    record_run(study / "trial-0000")
    record = {"state": "COMPLETE", "max_acc": 0.9123, "weights": "random (not fetched)"}
    (study / "list_acc.json").write_text(json.dumps([{**record, "cause": ""}]))
    page = gpu_study.page(result_of(tmp_path, "cuda", 50.0))
    assert "# The published study on Some GPU" in page and "missing" not in page
    assert "| images/s, training | 4.0 |" in page
    assert "| images/s, end to end | 1.6 |" in page
    assert "| accuracy | 0.912 | best epoch of the best trial, CHOSEN ON THE TEST IMAGES" in page
    assert "| GPU memory | 3.00 GB | whole GPU, by nvidia-smi |" in page
    assert "| training: batches, forward, backward, optimizer | 20.0 | 40.0% |" in page
    assert "weights at start: random)" in page and "/somewhere" not in page


def test_the_page_of_a_cpu_before_any_trial_ended(tmp_path: Path) -> None:
    page = gpu_study.page(result_of(tmp_path, "cpu", 4.0))
    assert "GPU figures are missing" in page
    assert "| images/s, training | - |" in page and "| accuracy | - |" in page


def test_a_study_is_begun_when_its_storage_knows_it(tmp_path: Path) -> None:
    import optuna

    storage = tmp_path / "rml_study.db"
    assert not gpu_study.is_begun(storage)
    storage.touch()
    assert not gpu_study.is_begun(storage)
    optuna.create_study(study_name=gpu_study.STUDY, storage=f"sqlite:///{storage}")
    assert gpu_study.is_begun(storage)


def test_the_machine_running_the_tests_has_a_name() -> None:
    assert " cores of " in gpu_study.cpu_name()
