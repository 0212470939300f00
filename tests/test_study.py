"""The study, with a fake trainer: what is asked, told, recorded, promoted, kept and resumed."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

import rml_optuna
from launchers.fake import FakeLauncher
from study import ready
from study.interruption import Interruption
from study.records import TrialRecord
from tests import studies
from trainer.config import SCHEDULES_OF_STUDIES, Optimizer
from trainer.errors import InputError

Epochs = Callable[[dict[str, Any]], "list[float] | int"]
PUBLISHED = ["max_acc", "optimizer", "lr", "loss", "epoch_max_acc"]


def improving(config: dict[str, Any]) -> list[float]:
    """Better with a larger rate; the best epoch is the last but one."""
    rate = config["optimizer"]["learning_rate"]
    top = 0.5 + 0.4 * min(1.0, rate / 0.01)
    return [top - 0.2] * (config["num_epochs"] - 2) + [top, top - 0.1]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return studies.make_data(tmp_path_factory.mktemp("data") / "data")


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory where there is such a folder: SQLite waits for the disk with every report."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture
def study(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str]]:
    """Types a study in tmp_path whose trials a fake trainer plays; exit code and all output."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(ready, "describe", lambda layers: {"parameters": 1000})
    monkeypatch.setattr(rml_optuna, "POLL_SECONDS", 0.001)

    def run(epochs: Epochs, *options: str) -> tuple[int, str]:
        place = studies.fake_place(epochs)
        monkeypatch.setattr(rml_optuna, "choose_launcher", lambda *asked: place)
        shared = ("--data", str(data), "--image-size", "16", "--study-name", "s")
        code, out, err = studies.typed_here(tmp_path, *shared, *options)
        return code, out + err

    return run


def trials(here: Path) -> list[optuna.trial.FrozenTrial]:
    storage = f"sqlite:///{here}/rml_study.db"
    return optuna.load_study(study_name="s", storage=storage).trials


def listed(here: Path) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = json.loads((here / "list_acc.json").read_text())
    return content


def test_a_whole_study(study: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    code, out = study(improving, "--num-trials", "4", "--num-epochs", "3")
    assert code == 0, out
    told = trials(tmp_path)
    assert [t.state.name for t in told] == ["COMPLETE"] * 4
    for trial, entry in zip(told, listed(tmp_path), strict=True):
        assert list(entry)[:5] == PUBLISHED
        assert entry["trial"] == trial.number
        assert entry["lr"] == trial.params["learning_rate"]
        assert entry["max_acc"] == trial.value == max(trial.intermediate_values.values())
        assert entry["epoch_max_acc"] == 2
        assert sorted(trial.intermediate_values) == [1, 2, 3]
    best = max(told, key=lambda t: t.value or 0)
    origin = json.loads((tmp_path / "best_model/best_model.json").read_text())
    assert origin["trial"] == best.number
    assert (tmp_path / "best_model/best_model_file.pt").read_text() == str(best.number)
    assert f"{best.number}: {best.params['optimizer']}" in out
    assert (tmp_path / "runs/s/list_acc.json").read_text() == (
        tmp_path / "list_acc.json"
    ).read_text()


def test_what_is_printed(study: Callable[..., tuple[int, str]]) -> None:
    _, out = study(improving, "--num-trials", "1", "--num-epochs", "3")
    text = " ".join(out.replace("|", " ").split())
    for part in (
        "22: 14 training, 2 validation (chosen on), 6 test (its own folder)",
        "32x24 to 32x24 pixels",
        "above 127.5 is foreground",
        "Masks without foreground 4 of 22",
        "Predicting nothing scores accuracy 0.4",
        "the big one: --layers ./layers/resunet.json --image-size 256",
        "Weights random",
        "optuna-dashboard sqlite:///rml_study.db",
        "trial 0 epoch 3/3: loss",
        "study ends about",
        "Test accuracy",
        "Best epoch is the last no",
        "best_model/config_test.json",
    ):
        assert part in text, part


def test_rendered_configuration(study: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    options = ("--num-trials", "1", "--num-epochs", "3", "--lr-scheduler", "-lr-gamma", "0.9")
    study(improving, *options)
    config = json.loads((tmp_path / "runs/s/trial-0000/config.json").read_text())["neural_network"]
    assert config["layers"] == "layers.json" and config["num_epochs"] == 3
    assert config["optimizer"]["lr_scheduler"] == {
        "type": "Exponential",
        "gamma": 0.9,
        "verbose": True,
    }
    names = [next(iter(t)) for t in config["data"]["transforms"]]
    assert names == ["resize", "random_horizontal_flip", "random_rotate", "random_zoom"]
    assert config["data"]["split"] == str(tmp_path / "runs/s/split.json")
    assert "test_input_path" not in config["data"]
    assert Path(config["data"]["input_path"]).is_absolute()
    network = json.loads((tmp_path / "runs/s/trial-0000/layers.json").read_text())
    assert network["network"] == "unet" and network["weights"] is None


@pytest.mark.parametrize("kind", SCHEDULES_OF_STUDIES)
def test_every_kind_of_schedule_is_written_as_the_trainer_reads_it(
    study: Callable[..., tuple[int, str]], tmp_path: Path, kind: str
) -> None:
    options = ("--num-trials", "1", "--num-epochs", "20", "--lr-scheduler-kind", f"warmup+{kind}")
    study(improving, *options)
    config = json.loads((tmp_path / "runs/s/trial-0000/config.json").read_text())["neural_network"]
    written = config["optimizer"]["lr_scheduler"]
    assert [one["type"].lower() for one in written] == ["warmup", kind]
    read = Optimizer.model_validate(config["optimizer"]).schedules
    assert [one.type for one in read] == ["warmup", kind] and read[0].num_epochs == 2


def test_augment_none_is_the_published_protocol(
    study: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    study(improving, "--num-trials", "1", "--num-epochs", "2", "--augment", "none")
    config = json.loads((tmp_path / "runs/s/trial-0000/config.json").read_text())["neural_network"]
    assert config["data"]["transforms"] == [{"resize": [16, 16]}]
    assert "input_transforms" not in config["data"]


def test_select_on_test_says_so_everywhere(
    study: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    options = ("--num-trials", "1", "--num-epochs", "2", "--select-on", "test")
    code, out = study(improving, *options)
    assert code == 0
    assert out.count("THE TEST IMAGES") >= 2
    split = json.loads((tmp_path / "runs/s/split.json").read_text())
    assert len(split["parts"]["training"]) == 16 and split["parts"]["validation"] == []
    config = json.loads((tmp_path / "runs/s/trial-0000/config.json").read_text())["neural_network"]
    assert config["data"]["test_input_path"].endswith("test/inputs/")
    assert listed(tmp_path)[0]["evaluated_on"] == "test"


def test_failed_trials_do_not_end_a_study(
    study: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    codes = iter([0, 4, 0, 5, 1, 6, 0])

    def sometimes(config: dict[str, Any]) -> list[float] | int:
        return next(codes) or improving(config)

    code, out = study(sometimes, "--num-trials", "7", "--num-epochs", "2")
    assert code == 0, out
    entries = listed(tmp_path)
    assert [e["state"] for e in entries].count("FAIL") == 4
    failed = [e for e in entries if e["state"] == "FAIL"]
    assert [e["max_acc"] for e in failed] == [0.0] * 4
    assert all(isinstance(e[key], (int, float)) for e in entries for key in ("max_acc", "lr"))
    causes = " ".join(e["cause"] for e in failed)
    for text in ("not a number", "out of memory", "error in the trainer", "no space left"):
        assert text in causes
    assert [t.state.name for t in trials(tmp_path)].count("FAIL") == 4


def test_three_failures_at_the_start_end_it(
    study: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    code, out = study(lambda config: 4, "--num-trials", "9", "--num-epochs", "2")
    assert code == 1
    assert "the first 3 trials failed" in out
    assert len(trials(tmp_path)) == 3


def test_a_mistake_of_input_ends_it_and_leaves_no_study(
    study: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    code, out = study(lambda config: 2, "--num-trials", "9", "--num-epochs", "2")
    assert code == 2
    assert "planned failure 2" in out
    assert not (tmp_path / "runs/s").exists()
    storage = f"sqlite:///{tmp_path}/rml_study.db"
    assert optuna.get_all_study_names(storage) == []


def test_hopeless_trials_are_pruned(study: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    numbers = iter(range(20))

    def falling(config: dict[str, Any]) -> list[float]:
        number = next(numbers)
        return [0.8 - 0.05 * number + 0.001 * epoch for epoch in range(config["num_epochs"])]

    code, out = study(falling, "--num-trials", "7", "--num-epochs", "10")
    assert code == 0, out
    entries = listed(tmp_path)
    assert [e["state"] for e in entries] == ["COMPLETE"] * 5 + ["PRUNED"] * 2
    assert all(e["epochs"] == 2 for e in entries[5:])  # a fifth of ten epochs
    assert "below the median" in entries[5]["cause"]
    assert not list((tmp_path / "runs/s/trial-0006/checkpoints").glob("*"))


def test_no_prune(study: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    numbers = iter(range(20))

    def falling(config: dict[str, Any]) -> list[float]:
        return [0.8 - 0.05 * next(numbers)] * config["num_epochs"]

    study(falling, "--num-trials", "7", "--num-epochs", "5", "--no-prune")
    assert {e["state"] for e in listed(tmp_path)} == {"COMPLETE"}


def test_checkpoints_of_the_best_stay(
    study: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    options = ("--num-trials", "6", "--num-epochs", "3", "--keep-checkpoints", "2")
    study(improving, *options)
    kept = {p.parent.parent.name for p in tmp_path.glob("runs/s/*/checkpoints/best.pt")}
    ranked = sorted(listed(tmp_path), key=lambda e: -e["max_acc"])
    assert kept == {f"trial-{e['trial']:04d}" for e in ranked[:2]}
    assert not list(tmp_path.glob("runs/s/*/checkpoints/last.pt"))


def test_metric_decides(study: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    options = ("--num-trials", "2", "--num-epochs", "3", "--metric", "foreground_dice")
    study(improving, *options)
    for trial, entry in zip(trials(tmp_path), listed(tmp_path), strict=True):
        assert trial.value == pytest.approx(entry["foreground_dice"])
        assert entry["max_acc"] == pytest.approx(2 * entry["foreground_dice"])


def test_the_same_seed_asks_the_same(
    study: Callable[..., tuple[int, str]], tmp_path: Path, data: Path
) -> None:
    study(improving, "--num-trials", "5", "--num-epochs", "2")
    first = [t.params for t in trials(tmp_path)]
    study(improving, "--num-trials", "5", "--num-epochs", "2", "--study-name", "other")
    storage = f"sqlite:///{tmp_path}/rml_study.db"
    other = optuna.load_study(study_name="other", storage=storage).trials
    assert [t.params for t in other] == first
    options = ("--num-trials", "5", "--num-epochs", "2", "--study-name", "third", "--seed", "1")
    study(improving, *options)
    third = optuna.load_study(study_name="third", storage=storage).trials
    assert [t.params for t in third] != first


def test_resume_asks_what_one_run_would_have_asked(
    study: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    study(improving, "--num-trials", "6", "--num-epochs", "2", "--study-name", "whole")
    study(improving, "--num-trials", "2", "--num-epochs", "2")
    code, out = study(improving, "--num-trials", "6", "--resume")
    assert code == 0, out
    storage = f"sqlite:///{tmp_path}/rml_study.db"
    whole = optuna.load_study(study_name="whole", storage=storage).trials
    assert [t.params for t in trials(tmp_path)] == [t.params for t in whole]
    assert [e["trial"] for e in listed(tmp_path)] == list(range(6))


def test_resume_takes_up_a_running_trial_under_its_number(
    study: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    study(improving, "--num-trials", "2", "--num-epochs", "2")
    storage = f"sqlite:///{tmp_path}/rml_study.db"
    left = optuna.load_study(study_name="s", storage=storage).ask()
    left.suggest_categorical("optimizer", ("adam", "rmsprop", "sgd"))
    left.report(0.1, 1)
    code, out = study(improving, "--num-trials", "4", "--resume")
    assert code == 0, out
    told = trials(tmp_path)
    assert [t.number for t in told] == [0, 1, 2, 3]
    assert all(t.state.is_finished() for t in told)
    assert told[2].params["optimizer"] == left.params["optimizer"]


def test_an_interrupted_trial_comes_again_with_its_parameters(
    study: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study(improving, "--num-trials", "4", "--num-epochs", "2", "--study-name", "whole")
    calls = iter(range(100))
    interruptions: list[Interruption] = []
    enter = Interruption.__enter__

    def remember(self: Interruption) -> Interruption:
        interruptions.append(self)
        return enter(self)

    monkeypatch.setattr(Interruption, "__enter__", remember)

    def stop_in_the_second(config: dict[str, Any]) -> list[float]:
        if next(calls) == 1:
            interruptions[-1].asked = True
        return improving(config)

    code, out = study(stop_in_the_second, "--num-trials", "4", "--num-epochs", "2")
    assert code == 130, out
    assert "--study-name s --resume" in out
    told = trials(tmp_path)
    assert told[1].state.name == "FAIL" and told[1].user_attrs["cause"] == "interrupted"
    code, out = study(improving, "--num-trials", "4", "--resume")
    assert code == 0, out
    told = trials(tmp_path)
    assert len(told) == 5 and told[2].params == told[1].params
    storage = f"sqlite:///{tmp_path}/rml_study.db"
    whole = optuna.load_study(study_name="whole", storage=storage).trials
    ended = [t.params for t in told if t.user_attrs["cause"] != "interrupted"]
    assert ended == [t.params for t in whole]


CHANGED = [
    (("--num-epochs", "5"), "--num-epochs 2 -> 5"),
    (("--optimizers", "adam"), "--optimizers"),
    (("-lr-max", "0.5"), "--lr-range-max 0.01 -> 0.5"),
    (("--image-size", "32"), "--image-size 16 -> 32"),
    (("--batch-size", "8"), "--batch-size 32 -> 8"),
    (("--seed", "3"), "--seed 0 -> 3"),
    (("--select-on", "test"), "--select-on validation -> test"),
    (("--augment", "none"), "--augment light -> none"),
]


@pytest.mark.parametrize(("options", "told"), CHANGED, ids=lambda v: str(v)[:24])
def test_resume_refuses_other_settings(
    options: tuple[str, ...], told: str, study: Callable[..., tuple[int, str]]
) -> None:
    study(improving, "--num-trials", "1", "--num-epochs", "2")
    code, out = study(improving, "--num-trials", "2", "--resume", *options)
    assert code == 2
    assert told in " ".join(out.split())


def test_resume_refuses_other_data(study: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    mine = studies.make_data(tmp_path / "mine")
    study(improving, "--num-trials", "1", "--num-epochs", "2", "--data", str(mine))
    (mine / "train/inputs/image_001.png").write_bytes(
        (mine / "train/inputs/image_002.png").read_bytes()
    )
    code, out = study(improving, "--num-trials", "2", "--resume", "--data", str(mine))
    assert code == 2 and "are not the same any more" in out


def test_an_existing_name_needs_resume(study: Callable[..., tuple[int, str]]) -> None:
    study(improving, "--num-trials", "1", "--num-epochs", "2")
    code, out = study(improving, "--num-trials", "1", "--num-epochs", "2")
    assert code == 2 and "exists already" in out and "--resume" in out


def test_two_studies_in_one_folder_keep_what_is_theirs(
    study: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    study(improving, "--num-trials", "2", "--num-epochs", "2")
    before = {p: p.read_bytes() for p in (tmp_path / "runs/s").rglob("*") if p.is_file()}
    study(improving, "--num-trials", "1", "--num-epochs", "2", "--study-name", "next")
    assert {p: p.read_bytes() for p in before} == before
    assert listed(tmp_path)[0]["study"] == "next"


def test_files_of_the_user_are_moved_aside(
    study: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    (tmp_path / "list_acc.json").write_text('[{"max_acc": 0.9}]')
    (tmp_path / "best_model").mkdir()
    (tmp_path / "best_model/best_model_file.pt").write_text("mine")
    code, out = study(improving, "--num-trials", "1", "--num-epochs", "2")
    assert code == 0 and out.count("was not made here") == 2
    kept = [p for p in tmp_path.iterdir() if ".before-" in p.name]
    assert {p.name.split(".before-")[0] for p in kept} == {"list_acc", "best_model"}
    texts = [p.read_text() for p in tmp_path.glob("best_model.before-*/*")]
    assert texts == ["mine"]


def test_time_limit_interrupts_and_the_trial_comes_again(
    study: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(rml_optuna.Driver, "late", lambda self: now[0] > 1)

    def late_in_the_third(config: dict[str, Any]) -> list[float]:
        now[0] += 0.4
        return [0.5] * config["num_epochs"]

    options = ("--num-trials", "5", "--num-epochs", "30", "--timeout", "4h")
    code, out = study(late_in_the_third, *options)
    assert code == 0, out
    entries = listed(tmp_path)
    assert [e["state"] for e in entries] == ["COMPLETE", "COMPLETE", "FAIL"]
    assert entries[2]["cause"] == "interrupted by the time limit"
    now[0] = -100.0
    code, out = study(late_in_the_third, "--resume")
    assert code == 0, out
    told = trials(tmp_path)
    assert told[3].params == told[2].params
    assert len([t for t in told if t.state.name == "COMPLETE"]) == 5


@pytest.mark.parametrize(
    ("place", "told"), [(0.01, "yes, the lower"), (0.5, "no"), (0.99, "yes, the upper")]
)
def test_best_rate_at_an_edge(place: float, told: str) -> None:
    from study.report import edge_of_range

    rate = 10 ** (-4 + 2 * place)
    assert edge_of_range(rate, 1e-4, 1e-2).startswith(told)


def test_best_epoch_is_the_last(study: Callable[..., tuple[int, str]]) -> None:
    _, out = study(lambda config: [0.5, 0.6], "--num-trials", "1", "--num-epochs", "2")
    text = " ".join(out.replace("|", " ").split())
    assert "Best epoch is the last yes: more epochs may help, like --num-epochs 4" in text


def test_resume_has_the_options_of_the_study(
    study: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    """Also those that may change: as many trials, as many kept checkpoints as before."""
    calls = iter(range(100))

    def stop_in_the_third(config: dict[str, Any]) -> list[float]:
        if next(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return improving(config)

    options = ("--num-trials", "5", "--num-epochs", "2", "--keep-checkpoints", "4")
    code, _ = study(stop_in_the_third, *options)
    assert code == 130
    code, out = study(improving, "--resume")
    assert code == 0, out
    assert [e["state"] for e in listed(tmp_path)].count("COMPLETE") == 5
    assert len(list(tmp_path.glob("runs/s/trial-*/checkpoints/best.pt"))) == 4


def test_bare_resume_takes_the_study_whose_driver_started_last(
    study: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    study(improving, "--num-trials", "1", "--num-epochs", "2")

    def stop_at_once(config: dict[str, Any]) -> list[float]:
        signal.raise_signal(signal.SIGTERM)
        return improving(config)

    study(stop_at_once, "--num-trials", "2", "--num-epochs", "2", "--study-name", "later")
    from study.command import last_study

    assert last_study(tmp_path) == "later"


def test_launch_error_on_resume_leaves_the_study(
    study: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study(improving, "--num-trials", "1", "--num-epochs", "2")

    def broken(self: FakeLauncher, job: Any) -> Any:
        raise InputError("docker", "the engine does not run")

    with monkeypatch.context() as patch:
        patch.setattr(FakeLauncher, "launch", broken)
        code, out = study(improving, "--resume", "--num-trials", "3")
    assert code == 2 and "does not run" in out
    assert (tmp_path / "runs/s/trial-0000/checkpoints/best.pt").exists()
    code, out = study(improving, "--resume", "--num-trials", "3")
    assert code == 0, out


def test_storage_that_breaks_is_told_and_nothing_is_lost(
    study: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = iter(range(100))
    report = optuna.trial.Trial.report

    def breaks(self: optuna.trial.Trial, value: float, step: int) -> None:
        if next(reports) == 5:
            raise optuna.exceptions.StorageInternalError("database or disk is full")
        report(self, value, step)

    with monkeypatch.context() as patch:
        patch.setattr(optuna.trial.Trial, "report", breaks)
        code, out = study(improving, "--num-trials", "4", "--num-epochs", "3")
    assert code == 1
    assert "disk is full" in out and "--resume" in out and "Traceback" not in out
    code, out = study(improving, "--resume")
    assert code == 0, out
    assert [t.number for t in trials(tmp_path)] == [0, 1, 2, 3]


def test_list_lost_by_a_kill_comes_back(
    study: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    study(improving, "--num-trials", "2", "--num-epochs", "2")
    before = listed(tmp_path)
    for path in (tmp_path / "list_acc.json", tmp_path / "runs/s/list_acc.json"):
        path.unlink()
    shutil.rmtree(tmp_path / "runs/s/best_model")
    code, out = study(improving, "--resume")
    assert code == 0, out
    assert listed(tmp_path) == before
    assert (tmp_path / "runs/s/best_model/best_model_file.pt").exists()


def test_trial_that_begins_again_has_the_score_of_its_last_run(
    study: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    runs = iter([[0.9, 3], [0.6, 0.5]])

    def cut_off_first(config: dict[str, Any]) -> list[float]:
        return next(runs)

    code, out = study(cut_off_first, "--num-trials", "1", "--num-epochs", "2")
    assert code == 0, out
    assert "was stopped from outside; it begins again" in out
    assert listed(tmp_path)[0]["max_acc"] == 0.6


def test_adopted_trial_without_parameters_is_seeded(
    study: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    study(improving, "--num-trials", "3", "--num-epochs", "2", "--study-name", "whole")
    study(improving, "--num-trials", "2", "--num-epochs", "2")
    storage = f"sqlite:///{tmp_path}/rml_study.db"
    optuna.load_study(study_name="s", storage=storage).ask()
    study(improving, "--num-trials", "3", "--resume", "--study-name", "s")
    whole = optuna.load_study(study_name="whole", storage=storage).trials
    assert [t.params for t in trials(tmp_path)] == [t.params for t in whole]


def test_links_in_a_run_folder_are_not_followed(
    study: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "best.pt").write_text("mine")
    (mine / "other.pt").write_text("mine")

    def link(config: dict[str, Any]) -> list[float]:
        for checkpoints in tmp_path.glob("runs/s/trial-*/checkpoints"):
            if not checkpoints.is_symlink():
                shutil.rmtree(checkpoints)
                checkpoints.symlink_to(mine)
        return improving(config)

    study(link, "--num-trials", "4", "--num-epochs", "2", "--keep-checkpoints", "1")
    assert sorted(p.name for p in mine.iterdir()) == ["best.pt", "other.pt"]
    assert not (tmp_path / "runs/s/best_model").exists()


def test_weights_fetched_later_do_not_change_a_study(
    study: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RML_WEIGHTS", str(tmp_path / "store"))
    network = {"network": "smp.Unet", "encoder": "resnet18", "activation": "sigmoid"}
    (tmp_path / "net.json").write_text(json.dumps(network))
    options = ("--layers", str(tmp_path / "net.json"), "--image-size", "32", "--num-epochs", "2")
    code, out = study(improving, "--num-trials", "1", *options)
    assert code == 0 and "were not fetched" in out, out
    (tmp_path / "store").mkdir()
    stored = tmp_path / "store/resnet18-imagenet.safetensors"
    stored.write_bytes(b"weights")
    record = {"sha256": hashlib.sha256(b"weights").hexdigest()}
    stored.with_suffix(".json").write_text(json.dumps(record))
    code, out = study(improving, "--num-trials", "2", "--resume", *options)
    assert code == 0, out
    assert [e["weights"].split()[0] for e in listed(tmp_path)] == ["random", "random"]
    changed = ("--num-trials", "2", "--resume", *options, "--weights", "imagenet")
    code, out = study(improving, *changed)
    assert code == 2 and "--weights none -> imagenet" in out


def test_groups_that_cross_parts_are_told(study: Callable[..., tuple[int, str]]) -> None:
    options = ("--num-trials", "1", "--num-epochs", "2", "--group-by", r"image_00([0-5])")
    _, out = study(improving, *options)
    text = " ".join(out.replace("|", " ").split())
    assert "10 names do not match --group-by" in text
    assert "6 TEST IMAGES SHARE A GROUP with training images" in text


@pytest.mark.parametrize(
    ("url", "secret"),
    [
        ("postgresql://me:p@ss@host/x", "ss"),
        ("postgresql://me:secret@host:1/x", "secret"),
        ("mysql://host/x?user=me&password=secret", "secret"),
    ],
)
def test_secrets_of_a_storage_are_masked(url: str, secret: str) -> None:
    from study.storage import masked

    assert secret not in masked(url).replace("postgresql", "").replace("password", "")
    assert "host" in masked(url) and "***" in masked(url)


def test_every_option_is_remembered() -> None:
    """What a resume begins from has every option of the command line but those of one run."""
    import inspect

    import rml_optimization
    from study.command import Given, settings_from

    parameters = inspect.signature(rml_optimization.study).parameters
    defaults = {name: p.default for name, p in parameters.items() if name != "context"}
    settings = settings_from(Given({**defaults, "gpu": False}, set()), studies.ROOT)
    of_one_run = {"study_name", "resume", "storage", "singularity_image", "num_procs"}
    expected = set(defaults) - of_one_run - {"transfer_learning"}
    assert {name.replace("-", "_") for name in settings.options()} == expected
    assert set(settings.fixed()) < set(settings.options())


def test_records_of_a_failed_trial_are_numbers() -> None:
    entry = TrialRecord(trial=3, state="FAIL", cause="x").as_dict("s", "accuracy")
    assert [entry[key] for key in ("max_acc", "lr", "epoch_max_acc")] == [0.0, 0.0, 0]
    assert re.fullmatch(r"\d+", str(entry["epoch_max_acc"]))


def test_weights_to_start_from_are_named_and_copied(
    study: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    start = tmp_path / "start.pt"
    start.write_bytes(b"x")
    code, out = study(improving, "--num-trials", "1", "--num-epochs", "2", "-tl", str(start))
    assert code == 0, out
    entry = listed(tmp_path)[0]
    assert str(start) in entry["weights"] and "sha256" in entry["weights"]
    config = json.loads((tmp_path / "runs/s/trial-0000/config.json").read_text())
    assert config["neural_network"]["checkpoints"]["load"] == str(tmp_path / "runs/s/start.pt")


def test_a_name_whose_study_never_came_to_be_can_be_used(
    study: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    (tmp_path / "runs/s").mkdir(parents=True)
    (tmp_path / "runs/s/driver.lock").write_text("")
    code, out = study(improving, "--num-trials", "1", "--num-epochs", "2")
    assert code == 0, out


def test_storage_that_may_not_be_written(
    study: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> Any:
        raise optuna.exceptions.StorageInternalError("attempt to write a readonly database")

    monkeypatch.setattr(optuna, "create_study", refuse)
    code, out = study(improving, "--num-trials", "1", "--num-epochs", "2")
    assert code == 2 and "readonly database" in out and "Traceback" not in out


def test_trial_0_is_what_one_would_try_by_hand(
    study: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    _, out = study(improving, "--num-trials", "2", "--num-epochs", "2", "-o", "sgd,adam")
    first = trials(tmp_path)[0].params
    assert first == {"optimizer": "sgd", "loss": "bce", "learning_rate": pytest.approx(1e-3)}
    assert "sgd, bce, rate 1.00e-03: what the search has to beat" in " ".join(out.split())
