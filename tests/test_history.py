"""Earlier studies: listed, shown, compared, brought back; with a fake trainer and a real one."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from PIL import Image

import rml_optuna
from study import ready
from study.commands.chart import HEIGHT, chart
from study.lock import DriverLock
from study.statistics import paired
from tests import studies

MANY = ("--num-trials", "3", "--num-epochs", "3", "--image-size", "16", "--no-prune")


def epochs(config: dict[str, Any]) -> list[float]:
    """Better with a larger rate; the best epoch is the second."""
    top = 0.5 + 0.4 * min(1.0, config["optimizer"]["learning_rate"] / 0.01)
    return [top - 0.2, top, top - 0.1]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the studies a and b of the same data, and c of other data."""
    here = tmp_path_factory.mktemp("here")
    data, other = studies.make_data(here / "data"), studies.make_data(here / "other", images=17)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setattr(ready, "describe", lambda layers: {"parameters": 1000})
        patch.setattr(rml_optuna, "POLL_SECONDS", 0.001)
        patch.setattr(rml_optuna, "choose_launcher", lambda *a: studies.fake_place(epochs))
        for name, folder, loss in (("a", data, "bce"), ("b", data, "dice"), ("c", other, "bce")):
            given = ("--data", str(folder), "--study-name", name, "--loss", loss, *MANY)
            code, out, err = studies.typed_here(here, *given)
            assert code == 0, out + err
    return here


@pytest.fixture
def here(made: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it."""
    folder = tmp_path / "here"
    shutil.copytree(made, folder)
    yield folder


def typed(here: Path, *options: str) -> str:
    code, out, err = studies.typed_here(here, *options)
    assert code == 0, err
    return out


def refused(here: Path, *options: str) -> str:
    code, out, err = studies.typed_here(here, *options)
    assert code == 2 and out == "", out
    return err


def row(text: str, name: str) -> list[str]:
    """The cells of the line that begins with `name`."""
    line = next(line for line in text.splitlines() if line.strip().startswith(name))
    return re.split(r"\s{2,}", line.strip())


# ---- list ----
def test_list_of_studies(here: Path) -> None:
    out = typed(here, "list")
    best = json.loads((here / "runs/b/best_model/best_model.json").read_text())
    cells = row(out, "b ")
    assert cells[1:3] == ["ended", "3 complete of 3"]
    assert cells[3] == f"accuracy {best['max_acc']:.3f} (trial {best['trial']})"
    assert cells[4].endswith("data") and row(out, "c ")[4].endswith("other")
    with DriverLock(here / "runs/a"):
        assert row(typed(here, "list"), "a ")[1] == "running"
    assert row(typed(here, "list"), "a ")[1] == "ended"


def test_list_of_trials_marks_the_best(here: Path) -> None:
    lines = typed(here, "list", "a").splitlines()
    entries = json.loads((here / "runs/a/list_acc.json").read_text())
    assert [line.split()[0].lstrip("*") for line in lines[3:]] == ["0", "1", "2"]
    best = max(entries, key=lambda e: e["value"])["trial"]
    assert [i for i, line in enumerate(lines[3:]) if "*" in line] == [best]


def test_list_shows_dice_by_class_where_it_was_recorded(here: Path) -> None:
    path = here / "runs/a/list_acc.json"
    entries = json.loads(path.read_text())
    entries[1]["class_dice"] = {"cyst": 0.25, "tumour": None}
    path.write_text(json.dumps(entries))
    (here / "rml_study.db").unlink()
    assert "cyst 0.250, tumour -" in typed(here, "list", "a")
    assert "cyst 0.250, tumour -" in typed(here, "show", "1", "--study", "a")


def test_list_without_the_storage_says_so_and_makes_none(here: Path) -> None:
    (here / "rml_study.db").unlink()
    for path in (here / "runs/b").iterdir():
        if path.name != "list_acc.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    out = typed(here, "list")
    assert "not in sqlite:///rml_study.db, known from runs/ alone: a, b, c" in out
    assert row(out, "a ")[1] == "ended" and row(out, "b ")[1:3] == ["unknown", "3 complete"]
    assert "COMPLETE" in typed(here, "list", "b")
    assert not (here / "rml_study.db").exists()


def test_list_without_the_folder(here: Path) -> None:
    shutil.rmtree(here / "runs/b")
    out = typed(here, "list")
    assert "no folder in runs/ here, known from the storage alone: b" in out
    assert row(out, "b ")[2] == "3 complete of 3"


def test_list_of_nothing_leaves_nothing(tmp_path: Path) -> None:
    assert "no study was run here yet" in typed(tmp_path, "list")
    assert list(tmp_path.iterdir()) == []


def test_listing_leaves_a_database_of_the_user_as_it_is(here: Path) -> None:
    with closing(sqlite3.connect(here / "mine #1.db")) as mine:
        mine.execute("create table patients (name text)")
    (here / "text.db").write_text("no database " * 100)
    (here / "empty.db").touch()
    for name in ("mine #1.db", "empty.db"):
        before = (here / name).read_bytes()
        for command in (("list",), ("show", "0"), ("use", "a")):
            told = refused(here, *command, "--storage", f"sqlite:///{name}")
            assert "is no storage of Optuna" in told, told
        assert (here / name).read_bytes() == before
    assert "file is not a database" in refused(here, "list", "--storage", "sqlite:///text.db")


def test_listing_writes_nothing(here: Path) -> None:
    file = here / "rml_study.db"
    before = file.read_bytes()
    file.chmod(0o444)
    for command in (("list",), ("list", "a"), ("show", "0")):
        typed(here, *command)
    assert file.read_bytes() == before and not (here / "rml_study.db-journal").exists()


def test_listing_after_a_driver_that_died_while_it_wrote(here: Path) -> None:
    """SQLite takes back what was half written."""
    code = """
import os, sqlite3
c = sqlite3.connect("rml_study.db", isolation_level=None)
c.execute("pragma cache_size=1")
c.execute("begin")
c.execute("create table filler (text)")
c.executemany("insert into filler values (?)", [("x" * 5000,)] * 200)
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code], cwd=here)
    assert (here / "rml_study.db-journal").stat().st_size
    assert row(typed(here, "list"), "a ")[1] == "ended"


def test_unknown_names_are_told_with_the_nearest(here: Path) -> None:
    (here / "runs/a").rename(here / "runs/first")
    assert "did you mean 'first'" in refused(here, "list", "frist")
    assert "accepted: 0 to 2" in refused(here, "show", "7", "--study", "b")
    options_first = refused(here, "--num-trials", "5", "list")
    assert "--num-trials" in options_first and "behind it: list" in options_first


# ---- show ----
def test_show(here: Path) -> None:
    folder = here / "runs/c/trial-0001"
    events = [
        {"event": "start", "device": "CPU", "threads": 2, "parameters": 99},
        *({"event": "epoch", "epoch": n, "epochs": 3, "loss": 1 / n, "accuracy": n / 4,
           "foreground_dice": n / 8, "evaluated_on": "validation"} for n in (1, 2, 3)),
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    (folder / "trainer.log").write_text("".join(f"line {n}\x1b[2J\n" for n in range(50)))
    out = typed(here, "show", "1")  # of the study that ran last
    config = json.loads((folder / "config.json").read_text())["neural_network"]
    rate = f"{config['optimizer']['learning_rate']:.4g}"
    for part in ("c, 1", "COMPLETE", rate, "CPU, threads: 2", "a accuracy, d foreground Dice"):
        assert part in out, part
    assert "3 of 3; on validation: accuracy 0.750, foreground Dice 0.375" in out
    assert "line 20?" in out and "line 19?" not in out and "\x1b" not in out
    assert "config.json" in out and "checkpoints/best.pt" in out
    assert "--device cpu --threads 2" in out.splitlines()[-1]


def test_a_trial_of_a_command_is_repeated_by_its_command(here: Path) -> None:
    script = "import os, sys; print(os.path.basename(os.getcwd()), sys.argv[1:], os.listdir())"
    with storage(here) as changed:
        words = [sys.executable, "-c", script, "{config}", "--x=a b"]
        changed["c"]["options"]["trial-command"] = shlex.join(words)
    command = typed(here, "show", "1").splitlines()[-1]
    assert "-m trainer" not in command
    pasted = subprocess.run(["bash", "-c", command], cwd=here, capture_output=True, text=True)
    assert pasted.stdout.startswith("again-c-1 ['config.json', '--x=a b']"), pasted
    assert "layers.json" in pasted.stdout


def test_what_a_study_ran_is_not_guessed(here: Path) -> None:
    (here / "rml_study.db").unlink()
    assert "python" in typed(here, "show", "1", "--study", "c").splitlines()[-1]
    shutil.rmtree(here / "runs/c/best_model")
    assert "To repeat it" not in typed(here, "show", "1", "--study", "c")


def test_a_log_does_not_reach_the_command_to_paste(here: Path) -> None:
    told = {"event": "start", "device": "CPU", "threads": "1; touch /tmp/x"}
    (here / "runs/c/trial-0001/metrics.jsonl").write_text(json.dumps(told) + "\n")
    assert "touch" not in typed(here, "show", "1").splitlines()[-1]


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": {"type": "adam", "learning_rate": "fast"}},
        {"optimizer": ["adam"]},
        {"data": ["train"]},
        {"data": {"transforms": 3}},
        {"loss": None},
        "[" * 100_000,
        '{"x": 1' + 5000 * "0" + "}",
    ],
)
def test_show_of_a_trial_that_rewrote_its_configuration(
    here: Path, changes: dict[str, Any] | str
) -> None:
    path = here / "runs/c/trial-0001/config.json"
    content = json.loads(path.read_text())
    rate = f"{content['neural_network']['optimizer']['learning_rate']:.3g}"[:4]
    if isinstance(changes, dict):
        content["neural_network"].update(changes)
        changes = json.dumps(content)
    path.write_text(changes)
    out = typed(here, "show", "1")
    assert "COMPLETE" in out and rate in out, "what the study chose"


def test_show_of_a_trial_that_told_nonsense(here: Path) -> None:
    lines = ['{"event": "epoch"}', "[1]", '{"event": "epoch", "epoch": 1, "accuracy": NaN}']
    lines += ['{"event": "epoch", "epoch": 2, "accuracy": 0.5}']
    lines += ['{"event": "epoch", "epoch": 3, "accuracy": 0.9, "loss": "low"}']
    (here / "runs/c/trial-0001/metrics.jsonl").write_text("\n".join(lines) + "\n")
    (here / "runs/c/trial-0001/result.json").write_text("[]")
    assert "2 of ?; on its images: accuracy 0.500" in typed(here, "show", "1")
    (here / "runs/c/trial-0001/metrics.jsonl").write_text("no JSON\n")
    assert "COMPLETE" in typed(here, "show", "1")


def test_show_of_a_trial_that_runs_or_was_cut_off(here: Path) -> None:
    shutil.copytree(here / "runs/a/trial-0000", here / "runs/a/trial-0003")
    (here / "runs/a/trial-0003/result.json").unlink()
    with DriverLock(here / "runs/a"):
        assert "RUNNING" in typed(here, "show", "3", "--study", "a")
    assert "CUT OFF" in typed(here, "show", "3", "--study", "a")


def test_show_without_the_run_folder(here: Path) -> None:
    shutil.rmtree(here / "runs/a")
    out = typed(here, "show", "2", "--study", "a")
    assert "COMPLETE" in out and "known from the storage alone" in out


@pytest.mark.parametrize("values", [[0.0, 1.0, 2.0], [5.0]])
def test_chart(values: list[float]) -> None:
    curve = list(enumerate(values))
    lines = chart({"one": curve}, "epoch", "o")
    marks = [(lines[row].index("|"), lines[row].count("o")) for row in range(HEIGHT)]
    assert sum(count for _, count in marks) == len(values)
    assert len({bar for bar, _ in marks}) == 1
    assert lines[0].endswith("o") if len(values) > 1 else lines[HEIGHT - 1].endswith("|o")
    assert chart({"none": []}, "epoch", "n") == []


def test_where_curves_meet() -> None:
    lines = chart({"one": [(0, 0), (1, 1)], "two": [(0, 1), (1, 1)]}, "epoch", "ab")
    assert lines[0].endswith("#") and lines[0].split("|")[1][0] == "b"


# ---- use ----
def test_use_brings_the_model_and_the_list_back(here: Path) -> None:
    assert json.loads((here / "list_acc.json").read_text())[0]["study"] == "c"
    out = typed(here, "use", "a")
    assert "./best_model is the model of 'a'" in out
    for name in ("best_model_file.pt", "best_model.json", "split.json"):
        assert (here / "best_model" / name).read_bytes() == (
            here / "runs/a/best_model" / name
        ).read_bytes()
    assert (here / "list_acc.json").read_text() == (here / "runs/a/list_acc.json").read_text()
    config = json.loads((here / "best_model/config_test.json").read_text())["neural_network"]
    assert config["checkpoints"]["load"] == "best_model/best_model_file.pt"
    assert config["data"]["split"] == "best_model/split.json"
    kept = json.loads((here / "runs/a/best_model/config_test.json").read_text())["neural_network"]
    assert kept["checkpoints"]["load"] == "runs/a/best_model/best_model_file.pt"


def test_use_of_what_a_command_trained(here: Path) -> None:
    assert "config_test.json" in typed(here, "use", "b")
    (here / "runs/a/best_model/config_test.json").unlink()
    out = typed(here, "use", "a")
    assert "config_test.json" not in out and "-m trainer" not in out
    assert "How to use best_model/best_model_file.pt, only the study's command knows" in out


def test_use_loses_nothing_of_the_user(here: Path) -> None:
    shutil.rmtree(here / "best_model")
    (here / "best_model").mkdir()
    (here / "best_model/mine.pt").write_text("mine")
    (here / "list_acc.json").write_text("[]")
    out = typed(here, "use", "b")
    assert out.count("was not made here; it is now") == 2
    aside = next(here.glob("best_model.before-*"))
    assert (aside / "mine.pt").read_text() == "mine"
    assert next(here.glob("list_acc.before-*.json")).read_text() == "[]"


def test_use_of_a_study_without_a_model_or_with_a_damaged_one(here: Path) -> None:
    before = (here / "best_model/best_model.json").read_text()
    (here / "runs/a/best_model/best_model_file.pt").write_text("damaged")
    assert "damaged" in refused(here, "use", "a")
    shutil.rmtree(here / "runs/b/best_model")
    assert "has no model" in refused(here, "use", "b")
    assert (here / "best_model/best_model.json").read_text() == before


# ---- compare ----
def worsen(here: Path, study: str) -> None:
    """The best model of the study finds nothing on the test images."""
    for path in (here / "runs" / study).glob("test-*/result.json"):
        content = json.loads(path.read_text())
        for image in content["evaluation"]["images"]:
            image.update(tp=0, fp=0, fn=60, tn=110, own={"tp": 0, "fp": 0, "fn": 60, "tn": 110})
        path.write_text(json.dumps(content))


def test_compare(here: Path) -> None:
    worsen(here, "b")
    out = typed(here, "compare", "a", "b")
    assert row(out, "--loss") == ["--loss", "bce", "dice"]
    assert "--num-epochs" not in out
    assert row(out, "foreground Dice,")[1:6] == [
        "6",
        "0.833",
        "0.000",
        "-0.833",
        "-0.833 to -0.833",
    ]
    assert "higher on 0 images, lower on 6" in out
    with Image.open(here / "compare-a-b.png") as picture:
        assert min(picture.size) > 300
    typed(here, "compare", "a", "b")  # its own picture is drawn again
    assert len(list(here.glob("compare-*"))) == 1


def test_compare_keeps_a_picture_that_is_not_its_own(here: Path) -> None:
    (here / "compare-a-b.png").write_text("mine")
    assert "compare-a-b.png was not made here" in typed(here, "compare", "a", "b")
    assert next(here.glob("compare-a-b.before-*.png")).read_text() == "mine"


def test_compare_refuses_other_data_other_images_and_no_scores(here: Path) -> None:
    assert "checksum of the data" in refused(here, "compare", "a", "c")
    assert "are one study" in refused(here, "compare", "a", "a")
    result = next((here / "runs/b").glob("test-*/result.json"))
    content = json.loads(result.read_text())
    content["evaluation"]["images"][0]["name"] = "another.png"
    result.write_text(json.dumps(content))
    error = refused(here, "compare", "a", "b")
    assert "splits differ" in error and "6 and 6 with 5 in common" in error
    result.unlink()
    assert "has no scores of the test images" in refused(here, "compare", "a", "b")
    assert not list(here.glob("compare-*"))


def test_compare_tells_why_scores_never_come(here: Path) -> None:
    result = next((here / "runs/b").glob("test-*/result.json"))
    result.unlink()
    may_come = refused(here, "compare", "a", "b")
    assert "let it end: --study-name 'b' --resume" in may_come
    path = here / "runs/b/best_model/config_test.json"
    config = json.loads(path.read_text())
    for key, expected in (
        ("split", "its trials ran in a foreign image"),
        ("test_target_path", "its test images have no masks"),
    ):
        del config["neural_network"]["data"][key]
        path.write_text(json.dumps(config))
        told = refused(here, "compare", "a", "b")
        assert expected in told and "--resume" not in told
    with storage(here) as changed:
        changed["b"]["options"]["trial-command"] = "python x.py {config}"
    told = refused(here, "compare", "a", "b")
    assert "--trial-command" in told and "--resume" not in told


@contextmanager
def storage(here: Path) -> Iterator[dict[str, Any]]:
    """What each study was made with, to be changed."""
    url = f"sqlite:///{here}/rml_study.db"
    found = {s: optuna.load_study(study_name=s, storage=url) for s in ("a", "b", "c")}
    content = {name: study.user_attrs["made_with"] for name, study in found.items()}
    yield content
    for name, study in found.items():
        study.set_user_attr("made_with", content[name])


def labelled(here: Path, study: str, *classes: tuple[str, int]) -> None:
    """The masks of the study have these classes."""
    path = here / "runs" / study / "split.json"
    content = json.loads(path.read_text())
    content["masks"]["classes"] = [{"name": n, "values": [v], "colours": []} for n, v in classes]
    path.write_text(json.dumps(content))


def test_compare_refuses_other_classes(here: Path) -> None:
    labelled(here, "a", ("no", 0), ("cyst", 128), ("tumour", 255))
    told = refused(here, "compare", "a", "b")
    assert "the classes of their masks differ" in told and "background and foreground" in told
    labelled(here, "b", ("no", 0), ("tumour", 255), ("cyst", 128))
    assert "cyst 128, tumour 255; against" in " ".join(refused(here, "compare", "a", "b").split())
    labelled(here, "b", ("no", 0), ("Zyste", 128), ("Tumor", 255))
    assert row(typed(here, "compare", "a", "b"), "content of --labels")[1:] == [
        "no 0, cyst 128, tumour 255",
        "no 0, Zyste 128, Tumor 255",
    ]
    result = next((here / "runs/b").glob("test-*/result.json"))
    content = json.loads(result.read_text())
    for image in content["evaluation"]["images"]:
        image["classes"] = [{**image["own"], "own": image["own"]}] * 3
    result.write_text(json.dumps(content))
    told = refused(here, "compare", "a", "b")
    assert "not as many classes" in told and "Traceback" not in told


def test_paired_difference_in_closed_form() -> None:
    """Ten images, each better by 0.1: of 2^10 exchanges only two are as extreme."""
    a = np.linspace(0.2, 0.8, 10)
    found = paired(a, a + 0.1, lambda values: float(values.mean()))
    assert found.interval == pytest.approx((0.1, 0.1))
    assert paired(a[:4], a[:4] + 0.1, lambda values: float(values.mean())).interval is None
    assert found.p == pytest.approx(2 / 2**10, abs=0.0015)
    assert paired(a, a, lambda values: float(values.mean())).p == 1


def mean(values: np.ndarray) -> float:
    return float(values.mean())


def pooled_dice(counts: np.ndarray) -> float:
    """Of rows of tp, fp, fn: all images together, which is no mean of the images."""
    tp, fp, fn = counts.sum(0)
    return float(2 * tp / (2 * tp + fp + fn))


def exact_p(a: np.ndarray, b: np.ndarray, metric: Callable[[np.ndarray], float]) -> float:
    """Two-sided, over all exchanges of the images."""
    observed = abs(metric(b) - metric(a))
    extreme = 0
    for chosen in product((False, True), repeat=len(a)):
        exchanged = np.reshape(chosen, (len(a),) + (1,) * (a.ndim - 1))
        one, other = np.where(exchanged, a, b), np.where(exchanged, b, a)
        extreme += abs(metric(one) - metric(other)) >= observed - 1e-12
    return extreme / 2 ** len(a)


@pytest.mark.parametrize("worse", [False, True])
@pytest.mark.parametrize(("images", "seed"), [(4, 0), (6, 1), (8, 2)])
def test_p_of_paired_is_that_of_all_exchanges(images: int, seed: int, worse: bool) -> None:
    generator = np.random.default_rng(seed)
    a = generator.random(images)
    b = a + generator.normal(0.1, 0.2, images)
    a, b = (b, a) if worse else (a, b)
    assert paired(a, b, mean).p == pytest.approx(exact_p(a, b, mean), abs=0.015)


@pytest.mark.parametrize("worse", [False, True])
def test_paired_exchanges_whole_images_of_pooled_counts(worse: bool) -> None:
    generator = np.random.default_rng(5)
    sizes = generator.integers(5, 200, 7)
    found = [generator.binomial(sizes, share) for share in (0.6, 0.75)]
    a, b = (np.stack([tp, sizes // 4, sizes - tp], 1).astype(float) for tp in found)
    a, b = (b, a) if worse else (a, b)
    told = paired(a, b, pooled_dice)
    assert (told.a, told.b) == (pooled_dice(a), pooled_dice(b))
    assert told.interval and told.interval[0] < told.b - told.a < told.interval[1]
    exact = exact_p(a, b, pooled_dice)
    assert told.p == pytest.approx(exact, abs=0.015) and 0.02 < exact < 0.9


# ---- with the real trainer ----
@pytest.mark.slow
def test_the_command_that_repeats_a_trial_repeats_it(tmp_path: Path) -> None:
    data = studies.make_data(tmp_path / "my data")
    given = ("--data", str(data), "--layers", str(studies.layers(tmp_path)), *studies.SMALL)
    ended = studies.driver(
        tmp_path, *given, "--num-trials", "1", "--study-name", "s", "--threads", "1"
    )
    assert ended.returncode == 0, ended.stderr
    shown = studies.driver(tmp_path, "show", "0")
    assert shown.returncode == 0, shown.stderr
    command = shown.stdout.splitlines()[-1]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    pasted = ["bash", "-c", command]
    subprocess.run(pasted, cwd=tmp_path, env={**environment, "PATH": path}, check=True)
    results = [
        json.loads((tmp_path / folder / "result.json").read_text())
        for folder in ("runs/s/trial-0000", "again-s-0")
    ]
    assert results[0]["evaluation"] == results[1]["evaluation"]
