"""The trainer from its command line to its files: what it prints, writes, repeats and refuses."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from trainer.__main__ import main, parse, translated
from trainer.checkpoint import load_checkpoint
from trainer.data.cache import ImageSet
from trainer.errors import InputError, NoSpace, OutOfMemory
from trainer.events import EventReader
from trainer.stopping import StopRequest

Build = Callable[..., dict[str, Any]]
Train = Callable[..., Any]
Python = Callable[..., "subprocess.CompletedProcess[str]"]
Started = Callable[..., "subprocess.Popen[str]"]

STAMP = r"\[\d{4}-[A-Z][a-z]{2}-\d{2} \d{2}:\d{2}:\d{2}\.\d{6}\] "
TRAIN_LINE = re.compile(
    STAMP + r"Train Epoch \[([ \d]{3})/([ \d]{3})\] : Batch \[([ \d]{5})/([ \d]{5})\] "
    r"\(Loss = (\d+\.\d{4}); \|g\| = (\d+\.\d{4})\) \[Data: \d+%; Compute: \d+%\]"
)
EVAL_LINE = re.compile(
    STAMP + r"Eval  Epoch \[([ \d]{3})/([ \d]{3})\] : Batch \[([ \d]{5})/([ \d]{5})\]"
    r"(?: \(Loss: (\d+\.\d{4})\) \| Accuracy: (\d\.\d{3}))?"
)


def lines(text: str, word: str) -> list[str]:
    return [line for line in text.splitlines() if word in line]


# ---- the command line ----


@pytest.mark.parametrize(
    "arguments",
    [["--config=F"], ["--config", "F"], ["--config=", "F"], ["--app=dnn", "--config=F"]],
)
def test_every_spelling_of_config(arguments: list[str]) -> None:
    assert parse(arguments).config == "F"


def test_config_may_stand_before_other_options() -> None:
    options = parse(["--config=", "F", "--app", "dnn", "--run-folder", "R", "--threads", "2"])
    assert (options.config, options.run_folder, options.threads) == ("F", "R", 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--app=pde", "--config=none.json"], ["'pde' is not in the scope"]),
        (["--app=xyz", "--config=none.json"], ["unknown name 'xyz'", "dnn"]),
        (["--config=none.json"], ["none.json", "no such configuration"]),
        (["--config=none.json", "--threads=0"], ["--threads", "1 or more"]),
        (["--config=none.json", "--run-folder=file"], ["file", "cannot be a run folder"]),
        (["--describe=none.json"], ["none.json", "no such layers file"]),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_two(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("Error: ") and "Traceback" not in error
    for word in words:
        assert word in error


def test_the_usage_is_told_by_argparse(python: Python) -> None:
    done = python("-m", "trainer")
    assert done.returncode == 2 and "--config" in done.stderr


def test_describe_a_network(python: Python, data: Path) -> None:
    done = python("-m", "trainer", "--describe", str(data / "layers.json"))
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert content == {
        "name": "unet",
        "parameters": content["trainable_parameters"],
        "trainable_parameters": content["parameters"],
        "input_shape": [3, None, None],
        "output_shape": [1, None, None],
        "operations": None,
        "divisor": 4,
        "weights": None,
    }
    assert content["parameters"] == parameters_of(data)


def parameters_of(data: Path) -> int:
    from trainer.networks.build import build, parameter_counts
    from trainer.networks.description import read_network

    return parameter_counts(build(read_network(data / "layers.json")))[0]


def test_without_a_run_folder_only_what_the_configuration_names_is_written(
    python: Python, configuration: Build, data: Path, tmp_path: Path
) -> None:
    for part in ("train", "test", "layers.json"):
        (tmp_path / part).symlink_to(data / part)
    sections = configuration(
        layers="./layers.json",
        outfile="out.txt",
        checkpoints={"save": "temp_model/"},
        data={
            "input_path": "./train/inputs/",
            "target_path": "train/targets",
            "test_input_path": "test/inputs/",
            "test_target_path": "./test/targets",
        },
    )
    (tmp_path / "config.json").write_text(json.dumps(sections))
    before = {path.name for path in tmp_path.iterdir()}
    done = python("-m", "trainer", "--config=", "config.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("] All done (return value = 0).")
    after = {path.name for path in tmp_path.iterdir()}
    assert after - before == {"out_train.txt", "out_test.txt", "temp_model"}
    kept = sorted(path.name for path in (tmp_path / "temp_model").iterdir())
    assert kept == ["best.pt", "last.pt", "model_checkpoint_1.pt"]


def test_without_names_nothing_is_written(
    configuration: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(configuration()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert main(["--config=config.json", "--device=cpu", "--threads=1"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_folder_with_a_result_is_refused_and_stays(train: Train, configuration: Build) -> None:
    first = train(configuration())
    before = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")}
    second = train(configuration())
    assert second.code == 2 and "has a result.json" in second.err
    assert {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")} == before


def test_a_bug_of_ours_has_a_traceback_and_exit_code_one(
    train: Train, configuration: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.train.open_run", lambda _: 1 / 0)
    ended = train(configuration())
    assert ended.code == 1 and "Traceback" in ended.err
    assert ended.result["reason"] == "ZeroDivisionError: division by zero"
    assert ended.events[-1]["event"] == "end"


# ---- what a run prints and writes ----


def test_the_events_of_a_run(trained: Any) -> None:
    kinds = [event["event"] for event in trained.events if event["event"] != "checkpoint"]
    assert kinds == ["start", *["epoch"] * 5, "end"]
    start, end = trained.events[0], trained.events[-1]
    assert start["schema_version"] == 1 and start["resumed_after"] is None
    assert start["device"] == "CPU" and start["threads"] == 1
    assert start["images"] == {"training": 7, "test": 5}
    assert start["weights"] == "random" and start["parameters"] > 1000
    assert (end["reason"], end["exit_code"]) == ("done", 0)
    for number, event in enumerate(trained.epochs, start=1):
        assert (event["epoch"], event["epochs"]) == (number, 5)
        assert event["evaluated_on"] == "test"
        for key in ("accuracy", "foreground_dice", "iou"):
            assert 0 <= event[key] <= 1
        assert event["loss"] > 0 and event["evaluation_loss"] > 0 and event["seconds"] > 0


def test_it_learns(trained: Any) -> None:
    losses = [event["loss"] for event in trained.epochs]
    assert losses[-1] < 0.8 * losses[0]


def test_the_learning_rate_falls_with_epochs_and_batches(trained: Any) -> None:
    """By 0.9 an epoch, and by 0.9 in 20 of the batches, of which an epoch has three."""
    expected = [0.02 * 0.9 ** (e + 3 * e / 20) for e in range(6)]
    rates = [event["learning_rate"] for event in trained.epochs]
    assert rates == pytest.approx(expected[:-1], rel=1e-9)
    told = [float(line.split()[-1]) for line in lines(trained.out, "] Learning rate: ")]
    assert told == pytest.approx(expected[1:], rel=1e-4)


def test_the_lines_of_the_log(trained: Any) -> None:
    found = [TRAIN_LINE.fullmatch(line) for line in lines(trained.out, "Train Epoch")]
    assert len(found) == 5 * 3 and all(found)
    numbers = [tuple(int(match.group(n)) for n in range(1, 5)) for match in found if match]
    assert numbers == [(epoch, 5, batch, 3) for epoch in range(1, 6) for batch in (1, 2, 3)]
    told = [EVAL_LINE.fullmatch(line) for line in lines(trained.out, "Eval  Epoch")]
    assert len(told) == 5 * 3 and all(told)
    last = [match for match in told if match and match.group(3) == match.group(4)]
    for match, event in zip(last, trained.epochs, strict=True):
        assert match.group(5) == f"{event['evaluation_loss']:.4f}"
        assert match.group(6) == f"{event['accuracy']:.3f}"
    assert all(match.group(6) is not None for match in told if match)


def test_foreground_dice_stands_below_each_evaluation(trained: Any) -> None:
    told = [line.partition("] ")[2] for line in lines(trained.out, "Foreground Dice")]
    assert told == [
        f"Foreground Dice: {event['foreground_dice']:.3f}, IoU: {event['iou']:.3f} "
        "(images with foreground, at their own size)"
        for event in trained.epochs
    ]


def test_the_log_is_kept_and_ends_as_published(trained: Any) -> None:
    assert (trained.folder / "trainer.log").read_text() == trained.out
    assert trained.out.splitlines()[-1].endswith("] All done (return value = 0).")
    for words in ("Device(s)", "Neural Network", "Optimizer", "Learning rate scheduler", "Loss"):
        assert f" {words} " in trained.out


def test_at_most_one_hundred_lines_an_epoch(
    train: Train, configuration: Build, tmp_path: Path
) -> None:
    folder = tmp_path / "many"
    for part in ("inputs", "targets"):
        (folder / part).mkdir(parents=True)
    for number in range(217):
        pixels = np.zeros((4, 4), np.uint8)
        Image.fromarray(pixels).save(folder / "inputs" / f"{number}.bmp")
        pixels[:2] = 255
        Image.fromarray(pixels).save(folder / "targets" / f"{number}.bmp")
    content = configuration(
        layers=layers_file(tmp_path, width=1, depth=1),
        data={
            "input_path": str(folder / "inputs"),
            "target_path": str(folder / "targets"),
            "test_input_path": None,
            "test_target_path": None,
            "batch_size": 1,
            "transforms": [{"resize": [4, 4]}],
        },
    )
    ended = train(content)
    assert ended.code == 0, ended.err
    batches = [int(TRAIN_LINE.fullmatch(line)[3]) for line in lines(ended.out, "Train Epoch")]  # type: ignore[index]
    assert batches == [-(-k * 217 // 100) for k in range(1, 101)]
    assert ended.epochs[0]["accuracy"] is None and ended.epochs[0]["evaluated_on"] is None
    assert (ended.folder / "checkpoints/best.pt").exists()


def layers_file(folder: Path, **keys: Any) -> str:
    path = folder / f"layers{len(list(folder.iterdir()))}.json"
    path.write_text(json.dumps({"network": "unet", "activation": "sigmoid", **keys}))
    return str(path)


def test_both_published_parsers_read_the_test_log(trained: Any) -> None:
    text = (trained.folder / "out.v1_test.txt").read_text().splitlines()
    by_numbers, by_words = [], []
    for line in text:
        numbers = re.findall(r"[0-9]*\.?[0-9]+", line)
        by_numbers.append((int(numbers[0]), float(numbers[-1])))
        by_words.append(float(line.split("Accuracy: ")[1]))
    expected = [(event["epoch"], round(event["accuracy"], 3)) for event in trained.epochs]
    assert by_numbers == expected
    assert by_words == [accuracy for _, accuracy in expected]


def test_the_train_log_has_a_line_a_batch(trained: Any) -> None:
    rows = [
        [float(word) for word in line.split()]
        for line in (trained.folder / "out.v1_train.txt").read_text().splitlines()
    ]
    assert [(row[1], row[2]) for row in rows] == [(e, b) for e in range(1, 6) for b in (1, 2, 3)]
    seconds = [row[0] for row in rows]
    assert seconds == sorted(seconds)
    sizes = np.array([3, 3, 1])
    for event in trained.epochs:
        losses = np.array([row[3] for row in rows if row[1] == event["epoch"]])
        assert (losses * sizes).sum() / 7 == pytest.approx(event["loss"], abs=1e-5)


# ---- predictions and scores ----


def array(path: Path, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    image = Image.open(path)
    return np.asarray(image.resize(size, Image.Resampling.NEAREST) if size else image)


def bilinear(p: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """`p` at another size, half-pixel centres, clamped at the border."""
    for axis, length in ((0, height), (1, width)):
        at = (np.arange(length) + 0.5) * p.shape[axis] / length - 0.5
        at = np.clip(at, 0, p.shape[axis] - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, p.shape[axis] - 1)
        share = np.expand_dims(at - low, 1 - axis)
        p = p.take(low, axis) * (1 - share) + p.take(high, axis) * share
    return p


def overlap(predicted: NDArray[Any], truth: NDArray[Any]) -> tuple[float, float]:
    """Dice and IoU of two boolean arrays; 1 for two empty ones."""
    hits, both = (predicted & truth).sum(), predicted.sum() + truth.sum()
    return (2 * hits / both, hits / (both - hits)) if both else (1.0, 1.0)


def test_the_published_reading_loop(trained: Any, data: Path) -> None:
    with h5py.File(trained.folder / "predictions/output_5.h5", "r") as pred:
        assert list(pred) == [f"case_{n}.png" for n in range(5)]
        for d in pred:
            assert pred[d].shape == (1, 16, 16) and pred[d].dtype == np.float32
            assert set(np.unique(pred[d][0, :, :].round())) <= {0.0, 1.0}
        assert pred.attrs["inputs"] == str(data / "test/inputs")
        assert pred.attrs["targets"] == str(data / "test/targets")
        assert pred.attrs["threshold"] == 0.5
    names = {path.name for path in (trained.folder / "predictions").iterdir()}
    assert names == {f"output_{epoch}.h5" for epoch in range(1, 6)}


def test_the_scores_equal_those_computed_from_the_predictions(trained: Any, data: Path) -> None:
    for event in trained.epochs:
        predicted, truth, own = [], [], []
        with h5py.File(trained.folder / f"predictions/output_{event['epoch']}.h5", "r") as file:
            for name in file:
                p = np.asarray(file[name][0], np.float64)
                predicted.append(p > 0.5)
                truth.append(array(data / "test/targets" / name, (16, 16)) > 127)
                mask = array(data / "test/targets" / name) > 127
                if mask.any():
                    own.append(overlap(bilinear(p, *mask.shape) > 0.5, mask))
        p, t = np.stack(predicted), np.stack(truth)
        accuracy = (overlap(p, t)[0] + overlap(~p, ~t)[0]) / 2
        assert event["accuracy"] == pytest.approx(accuracy, abs=1e-12)
        assert len(own) == 4
        expected = np.mean(own, axis=0)
        assert [event["foreground_dice"], event["iou"]] == pytest.approx(expected, abs=1e-12)


def test_result_json_has_the_best_epoch_and_every_image(trained: Any) -> None:
    result = trained.result
    best = max(trained.epochs, key=lambda event: event["accuracy"])
    assert result["schema_version"] == 1
    assert (result["exit_code"], result["reason"], result["epochs"]) == (0, "done", 5)
    assert {key: result["best"][key] for key in best if key != "event"} == {
        key: value for key, value in best.items() if key != "event"
    }
    images = {image["name"]: image for image in result["evaluation"]["images"]}
    assert len(images) == 5
    assert [name for name, image in images.items() if image["empty"]] == ["case_2.png"]
    assert sum(images["case_0.png"]["own"].values()) == 20 * 26


def evaluated(trained: Any, train: Train, configuration: Build, name: str, **sections: Any) -> Any:
    data = {"input_path": None, "target_path": None, "transforms": None}
    content = configuration(
        layers=None,
        optimizer=None,
        checkpoints={"load": str(trained.folder / "model/best.pt")},
        **{**sections, "data": {**data, **sections.get("data", {})}},
    )
    ended = train(content, name)
    assert ended.code == 0, ended.err
    return ended


def test_scores_do_not_depend_on_the_test_batch_size(
    trained: Any, train: Train, configuration: Build
) -> None:
    results = [
        evaluated(trained, train, configuration, f"b{size}", data={"test_batch_size": size}).result
        for size in (1, 3, 64)
    ]
    first = results[0]["evaluation"]
    for result in results[1:]:
        assert result["evaluation"]["images"] == first["images"]
        assert result["evaluation"]["accuracy"] == first["accuracy"]
        assert result["evaluation"]["loss"] == pytest.approx(first["loss"], rel=1e-5)


def test_without_truth_there_are_predictions_only(
    trained: Any, train: Train, configuration: Build, data: Path
) -> None:
    ended = evaluated(
        trained,
        train,
        configuration,
        "predict",
        data={"test_target_path": None, "test_output_path": "p"},
    )
    assert "evaluation" not in ended.result and ended.result["images"] == 5
    told = [EVAL_LINE.fullmatch(line) for line in lines(ended.out, "Eval  Epoch")]
    assert len(told) == 3 and all(match and match.group(6) is None for match in told)
    assert "Foreground Dice" not in ended.out
    with h5py.File(ended.folder / "p/output_1.h5", "r") as file:
        assert len(file) == 5
        assert (file.attrs["inputs"], file.attrs["targets"]) == (str(data / "test/inputs"), "")


def test_a_loss_is_not_needed_to_evaluate(trained: Any, train: Train, configuration: Build) -> None:
    ended = evaluated(trained, train, configuration, "noloss", loss=None)
    assert ended.result["evaluation"]["loss"] is None
    assert ended.result["evaluation"]["accuracy"] == trained.result["best"]["accuracy"]


# ---- the split ----


def split_file(path: Path, **keys: Any) -> str:
    content = {
        "seed": 11,
        "select_on": "validation",
        "metric": "foreground_dice",
        "parts": {
            "training": [f"case_{n}.png" for n in range(4)],
            "validation": ["case_4.png", "case_6.png"],
            "test": ["case_0.png", "case_3.png"],
        },
        "masks": {"threshold": 127.5, "values": [0, 255]},
        **keys,
    }
    path.write_text(json.dumps(content))
    return str(path)


def test_a_split_names_the_images_the_seed_and_the_metric(
    train: Train, configuration: Build, data: Path, tmp_path: Path
) -> None:
    split = split_file(tmp_path / "split.json")
    sections = {"split": split, "test_input_path": None, "test_target_path": None}
    ended = train(configuration(num_epochs=4, data={**sections, "test_output_path": "p"}))
    assert ended.code == 0, ended.err
    assert ended.events[0]["images"] == {"training": 4, "validation": 2}
    best = max(ended.epochs, key=lambda event: event["foreground_dice"])
    assert ended.result["best"]["epoch"] == best["epoch"]
    assert best["evaluated_on"] == "validation"
    names = [image["name"] for image in ended.result["evaluation"]["images"]]
    assert names == ["case_4.png", "case_6.png"]
    with h5py.File(ended.folder / "p/output_1.h5", "r") as file:
        assert list(file) == names
        assert file.attrs["inputs"] == str(data / "train/inputs")
        assert file.attrs["targets"] == str(data / "train/targets")
        assert json.loads(file.attrs["masks"])["threshold"] == 127.5
    use = load_checkpoint(ended.folder / "checkpoints/best.pt")["use"]
    assert use["masks"]["threshold"] == 127.5

    seeded = train(configuration(num_epochs=4, seed=11, data=sections), "seeded")
    other = train(configuration(num_epochs=4, seed=12, data=sections), "other")
    losses = [[event["loss"] for event in e.epochs] for e in (ended, seeded, other)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(("metric", "best"), [("accuracy", 1), ("iou", 2), ("foreground_dice", 3)])
def test_the_best_epoch_is_that_of_the_metric(
    train: Train,
    configuration: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    metric: str,
    best: int,
) -> None:
    scores = iter([(0.9, 0.1, 0.2), (0.8, 0.2, 0.4), (0.7, 0.3, 0.3), (0.9, 0.3, 0.4)])

    def told(*_: Any) -> dict[str, Any]:
        return dict(zip(("accuracy", "foreground_dice", "iou"), next(scores), strict=True))

    monkeypatch.setattr("trainer.train.as_result", told)
    split = split_file(tmp_path / "split.json", metric=metric)
    sections = {"split": split, "test_input_path": None, "test_target_path": None}
    ended = train(configuration(num_epochs=4, data=sections))
    assert ended.result["best"]["epoch"] == best
    assert load_checkpoint(ended.folder / "checkpoints/best.pt")["origin"]["epoch"] == best


def test_a_split_without_training_evaluates_its_test_part(
    trained: Any, train: Train, configuration: Build, tmp_path: Path
) -> None:
    split = split_file(tmp_path / "split.json")
    ended = evaluated(trained, train, configuration, "test", data={"split": split})
    names = [image["name"] for image in ended.result["evaluation"]["images"]]
    assert names == ["case_0.png", "case_3.png"]
    assert ended.result["evaluation"]["evaluated_on"] == "test"


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        (
            {"parts": {"training": ["x.png"], "validation": [], "test": []}},
            "not in the data: x.png",
        ),
        ({"metric": "f1"}, "metric: Input should be 'accuracy'"),
        ({"schema_version": 2}, "schema_version is 2"),
    ],
)
def test_a_split_that_does_not_fit(
    train: Train, configuration: Build, tmp_path: Path, keys: Any, found: str
) -> None:
    split = split_file(tmp_path / "split.json", **keys)
    ended = train(configuration(data={"split": split, "test_input_path": None}))
    assert ended.code == 2 and found in ended.err


def test_masks_of_zero_and_one_are_nearly_empty_without_a_split(
    train: Train, configuration: Build, data: Path, tmp_path: Path
) -> None:
    """Values are divided by 255, as published; a split knows what they mean."""
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        for path in sorted((data / part / "targets").iterdir()):
            Image.fromarray(array(path) // 255).save(tmp_path / part / path.name)
    paths = {
        "target_path": str(tmp_path / "train"),
        "test_target_path": str(tmp_path / "test"),
    }
    plain = train(configuration(data=paths), "plain")
    assert all(image["empty"] for image in plain.result["evaluation"]["images"])
    assert plain.epochs[0]["foreground_dice"] is None
    assert "Foreground Dice: none of the samples has foreground" in plain.out
    splits = [
        split_file(tmp_path / f"{cut}.json", masks={"threshold": cut, "values": [0]})
        for cut in (0.5, 127.5)
    ]
    known = train(configuration(data={**paths, "split": splits[0]}), "known")
    usual = train(configuration(data={"split": splits[1]}), "usual")
    assert [image["empty"] for image in known.result["evaluation"]["images"]] == [False, False]
    for key in ("loss", "accuracy", "foreground_dice"):
        assert known.epochs[0][key] == usual.epochs[0][key]


# ---- repeatable ----


def test_a_run_repeats_bit_by_bit(trained: Any, train: Train) -> None:
    content = json.loads(trained.folder.with_suffix(".json").read_text())
    again = train(content)

    def told(ended: Any) -> list[dict[str, Any]]:
        return [{k: v for k, v in event.items() if k != "seconds"} for event in ended.events]

    assert told(again) == told(trained)
    states = [load_checkpoint(e.folder / "model/best.pt")["state"] for e in (trained, again)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    with (
        h5py.File(trained.folder / "predictions/output_5.h5") as one,
        h5py.File(again.folder / "predictions/output_5.h5") as two,
    ):
        assert all(np.array_equal(one[name][:], two[name][:]) for name in one)

    content["neural_network"]["seed"] = 4
    other = train(content, "other")
    assert other.epochs[0]["loss"] != trained.epochs[0]["loss"]


def test_the_first_epoch_is_the_best_on_ties(train: Train, configuration: Build) -> None:
    content = configuration(num_epochs=3, optimizer={"type": "sgd", "learning_rate": 1e-30})
    ended = train(content)
    scores = {event["accuracy"] for event in ended.epochs}
    if len(scores) == 1:
        assert ended.result["best"]["epoch"] == 1
    first = next(e for e in ended.epochs if e["accuracy"] == max(scores))
    assert ended.result["best"]["epoch"] == first["epoch"]
    assert (
        load_checkpoint(ended.folder / "checkpoints/best.pt")["origin"]["epoch"] == first["epoch"]
    )


# ---- mistakes of input ----


def test_faults_of_the_data_are_told(
    train: Train, configuration: Build, data: Path, tmp_path: Path
) -> None:
    shutil.copytree(data / "train", tmp_path / "train")
    (tmp_path / "train/targets/case_1.png").unlink()
    (tmp_path / "train/targets/case_2.png").rename(tmp_path / "train/targets/caze_2.png")
    paths = {f"{part}_path": str(tmp_path / "train" / f"{part}s") for part in ("input", "target")}
    ended = train(configuration(data=paths))
    assert ended.code == 2 and "3 faults" in ended.err
    for words in ("case_1.png: has no mask", "case_2.png: has no mask", "caze_2.png: is a mask"):
        assert words in ended.err
    assert ended.result["exit_code"] == 2 and ended.events[-1]["exit_code"] == 2


def test_a_broken_image_is_named(
    train: Train, configuration: Build, data: Path, tmp_path: Path
) -> None:
    shutil.copytree(data / "test/inputs", tmp_path / "inputs")
    broken = tmp_path / "inputs/case_3.png"
    broken.write_bytes(broken.read_bytes()[:200])
    ended = train(configuration(data={"test_input_path": str(tmp_path / "inputs")}))
    assert ended.code == 2 and str(broken) in ended.err and "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("sections", "found"),
    [
        ({"data": {"transforms": [{"resize": [18, 16]}]}}, "the nearest are 16 and 20"),
        ({"data": {"transforms": []}}, "pixels"),
        ({"loss": {"source": "softmax"}}, "the network ends in sigmoid"),
        ({"layers": "none.json"}, "no such layers file"),
        ({"layers": [{"class_name": "Dense"}]}, "layer 1 (Dense), config: found nothing"),
        ({"checkpoints": {"load": "none.pt"}}, "there is no such checkpoint"),
        ({"data": {"input_path": "/none"}}, "there is no such folder"),
        ({"data": {"split": "none.json"}}, "no such split file"),
        ({"optimizer": {"type": "sgd", "nesterov": True}}, "nesterov needs a momentum"),
    ],
)
def test_a_run_that_cannot_start(
    train: Train, configuration: Build, sections: Any, found: str
) -> None:
    ended = train(configuration(**sections))
    assert ended.code == 2, ended.err
    assert found in ended.err and "Traceback" not in ended.err


def test_images_without_a_resize_must_fit_the_network(
    train: Train, configuration: Build, data: Path, tmp_path: Path
) -> None:
    for part in ("inputs", "targets"):
        (tmp_path / part).mkdir()
        for number in (0, 3):  # the images of 26x20 pixels
            shutil.copy(data / "train" / part / f"case_{number}.png", tmp_path / part)
    paths = {
        "input_path": str(tmp_path / "inputs"),
        "target_path": str(tmp_path / "targets"),
        "test_input_path": None,
        "test_target_path": None,
        "transforms": [],
    }
    ended = train(configuration(data=paths))
    assert ended.code == 2 and "cannot take 26x20 pixels" in ended.err
    ended = train(configuration(data=paths, layers=layers_file(tmp_path, width=2, depth=1)), "fits")
    assert ended.code == 0, ended.err


def test_a_last_batch_of_one_image_that_cannot_be_normalised(
    train: Train, configuration: Build, tmp_path: Path
) -> None:
    layers = layers_file(tmp_path, width=2, depth=4)  # 1x1 pixel at the bottom
    ended = train(configuration(layers=layers))
    assert ended.code == 2
    assert "data.batch_size" in ended.err and "a batch of one image" in ended.err
    ended = train(configuration(layers=layers, data={"batch_size": 4}), "fits")
    assert ended.code == 0, ended.err


# ---- ends before its time ----


def test_a_loss_that_is_not_a_number(train: Train, configuration: Build) -> None:
    content = configuration(
        num_epochs=30, optimizer={"type": "sgd", "learning_rate": 1e30, "momentum": 0.9}
    )
    ended = train(content)
    assert ended.code == 4
    assert re.search(r"the (loss|gradient) is (nan|inf) at epoch \d+, batch \d", ended.err)
    assert ended.result["exit_code"] == 4 and ended.events[-1]["exit_code"] == 4
    assert all(event["loss"] is not None for event in ended.epochs)


def endless(configuration: Build, path: Path) -> str:
    path.write_text(json.dumps(configuration(num_epochs=1_000_000)))
    return str(path)


def wait_for_epoch(folder: Path, process: subprocess.Popen[str]) -> None:
    reader, began = EventReader(folder / "metrics.jsonl"), time.monotonic()
    while not any(event["event"] == "epoch" for event in reader.new()):
        assert process.poll() is None and time.monotonic() - began < 30
        time.sleep(0.05)


def test_sigterm_leaves_a_checkpoint_and_a_reason(
    started: Started, configuration: Build, tmp_path: Path
) -> None:
    config, folder = endless(configuration, tmp_path / "c.json"), tmp_path / "run"
    process = started("-m", "trainer", "--config", config, "--run-folder", str(folder))
    wait_for_epoch(folder, process)
    process.terminate()
    assert process.wait(5) == 3
    last = load_checkpoint(folder / "checkpoints/last.pt")
    assert last["training"]["epoch"] >= 1 and last["training"]["optimizer"]["state"]
    result = json.loads((folder / "result.json").read_text())
    assert result == {"schema_version": 1, "exit_code": 3, "reason": "SIGTERM received"}
    end = EventReader(folder / "metrics.jsonl").new()[-1]
    assert (end["event"], end["exit_code"]) == ("end", 3)


def test_a_still_heartbeat_ends_a_run(
    started: Started, configuration: Build, tmp_path: Path
) -> None:
    config, folder = endless(configuration, tmp_path / "c.json"), tmp_path / "run"
    folder.mkdir()
    (folder / "heartbeat").touch()
    process = started(
        "-c",
        "import sys; from trainer.stopping import StopRequest; from trainer.__main__ import main; "
        "StopRequest.on_still_heartbeat.__defaults__ = (1.0,); "
        f"sys.exit(main(['--config', {config!r}, '--run-folder', {str(folder)!r}]))",
    )
    assert process.wait(30) == 3
    assert "heartbeat stands still" in json.loads((folder / "result.json").read_text())["reason"]


def test_a_run_whose_parent_is_gone(train: Train, configuration: Build) -> None:
    ended = train(configuration(), "run", "--parent-pid", "1000000")
    assert ended.code == 3
    assert ended.result["reason"] == "the driver is gone"


def test_a_stop_while_it_trains_keeps_what_it_learned(
    train: Train, configuration: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.stopping import StopRequest

    asks = iter(range(1000))
    monkeypatch.setattr(StopRequest, "asked", lambda self: next(asks) > 20)
    monkeypatch.setattr(StopRequest, "reason", "enough", raising=False)
    monkeypatch.setattr(StopRequest, "__init__", lambda self: None)
    monkeypatch.setattr(StopRequest, "check", lambda self: None)
    ended = train(configuration(num_epochs=1000))
    assert ended.code == 3 and ended.result["reason"] == "enough"
    last = load_checkpoint(ended.folder / "checkpoints/last.pt")
    assert last["training"]["epoch"] == len(ended.epochs) >= 1


# ---- a run that goes on ----


def stop_at(monkeypatch: pytest.MonkeyPatch, question: str, call: int) -> None:
    """The next run is asked to stop at this call of StopRequest.asked or .check."""
    real, count = getattr(StopRequest, question), itertools.count(1)

    def counted(self: StopRequest) -> Any:
        if next(count) == call:
            self.ask("enough")
        return real(self)

    monkeypatch.setattr(StopRequest, question, counted)


def without_time(event: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key not in ("seconds", "memory_bytes")}


PRELOADED = 7 + 5
STOPS = {
    "in the first epoch": [("asked", PRELOADED + 1)],
    "in the midst of an epoch": [("asked", PRELOADED + 3 + 2)],
    "after the last batch of an epoch": [("asked", PRELOADED + 2 * 3)],
    "in an evaluation": [("check", 2 + 4 + 2)],
    "after an evaluation": [("check", 2 + 2 * 4)],
    "three times": [("asked", PRELOADED + 5), ("check", 2 + 1), ("asked", PRELOADED + 2)],
}
"""An epoch has 3 batches, each followed by `asked`, then 3 batches of evaluation, each preceded by
`check`, and another `check`."""


@pytest.mark.parametrize("stops", STOPS.values(), ids=STOPS)
def test_a_run_that_stopped_goes_on_as_if_it_had_not(
    trained: Any, train: Train, monkeypatch: pytest.MonkeyPatch, stops: list[tuple[str, int]]
) -> None:
    content = json.loads(trained.folder.with_suffix(".json").read_text())
    for number, (question, call) in enumerate(stops):
        with monkeypatch.context() as patch:
            stop_at(patch, question, call)
            ended = train(content, "run", *(["--resume"] if number else []))
        assert ended.code == 3, ended.err
    last = load_checkpoint(ended.folder / "model/last.pt")["training"]
    ended = train(content, "run", "--resume")
    assert ended.code == 0, ended.err
    start = [event for event in ended.events if event["event"] == "start"][-1]
    assert start["resumed_after"] == {key: last[key] for key in ("epoch", "batches")}

    assert [without_time(event) for event in ended.epochs] == [
        without_time(event) for event in trained.epochs
    ]
    for name in ("best.pt", "last.pt", "model_checkpoint_4.pt"):
        mine, whole = (load_checkpoint(e.folder / "model" / name) for e in (ended, trained))
        assert without_time(mine["origin"]) == without_time(whole["origin"])
        assert mine["state"].keys() == whole["state"].keys()
        assert all(torch.equal(mine["state"][key], whole["state"][key]) for key in mine["state"])
    result = ended.result
    assert without_time(result.pop("best")) == without_time(trained.result["best"])
    assert result == {key: value for key, value in trained.result.items() if key != "best"}
    logs = [
        [line.split()[1:] for line in (e.folder / "out.v1_train.txt").read_text().splitlines()]
        for e in (ended, trained)
    ]
    assert logs[0] == logs[1]
    assert (ended.folder / "out.v1_test.txt").read_text() == (
        trained.folder / "out.v1_test.txt"
    ).read_text()
    assert "Resuming at epoch" in (ended.folder / "trainer.log").read_text()


def test_sigterm_and_resume(
    started: Started, configuration: Build, train: Train, tmp_path: Path
) -> None:
    content = configuration(num_epochs=40)
    (tmp_path / "c.json").write_text(json.dumps(content))
    folder = tmp_path / "run"
    options = ("--run-folder", str(folder), "--threads", "1", "--device", "cpu")
    process = started("-m", "trainer", "--config", str(tmp_path / "c.json"), *options)
    wait_for_epoch(folder, process)
    process.terminate()
    assert process.wait(10) == 3
    ended, whole = train(content, "run", "--resume"), train(content, "whole")
    assert ended.code == 0, ended.err
    assert [without_time(e) for e in ended.epochs] == [without_time(e) for e in whole.epochs]


def test_a_schedule_as_earlier_versions_kept_it_goes_on(train: Train, configuration: Build) -> None:
    rate = {"optimizer": {"lr_scheduler": {"type": "Exponential", "gamma": 0.5}}}
    ended = train(configuration(num_epochs=2, **rate))
    path = ended.folder / "checkpoints/last.pt"
    last = torch.load(path, weights_only=True)
    counts = {"last_epoch": 2, "_step_count": 3, "_last_lr": [0.02 * 0.5**2]}
    last["training"]["schedule"] = {**counts, "base_lrs": [0.02], "gamma": 0.5}
    torch.save(last, path)
    (ended.folder / "result.json").unlink()
    ended = train(configuration(num_epochs=4, **rate), "run", "--resume")
    assert ended.code == 0, ended.err
    rates = [event["learning_rate"] for event in ended.epochs[-2:]]
    assert rates == pytest.approx([0.02 * 0.5**2, 0.02 * 0.5**3])


def test_without_a_last_checkpoint_a_run_starts_anew(train: Train, configuration: Build) -> None:
    failed = train(configuration(data={"input_path": "/none"}))
    assert failed.code == 2
    ended = train(configuration(), "run", "--resume")
    assert ended.code == 0, ended.err
    assert [event["epoch"] for event in ended.epochs] == [1]


def test_what_cannot_go_on(
    train: Train, configuration: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = train(configuration())
    again = train(configuration(), "run", "--resume")
    assert again.code == 2 and "this run has ended" in again.err
    (ended.folder / "result.json").unlink()
    other = train(configuration(layers=layers_file(tmp_path, width=2)), "run", "--resume")
    assert other.code == 2 and "is of another network" in other.err
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert main(["--config=c.json", "--resume"]) == 2


def test_a_loss_that_is_not_a_number_spoils_no_checkpoint(
    train: Train, configuration: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.checkpoint.LAST_CHECKPOINT_SECONDS", -1)
    ended = train(configuration(num_epochs=30, optimizer={"type": "sgd", "learning_rate": 1e30}))
    assert ended.code == 4
    last = ended.folder / "checkpoints/last.pt"
    assert not last.exists() or load_checkpoint(last)["training"]["epoch"] == len(ended.epochs)


def test_no_index_is_moved_in_a_batch(
    train: Train, configuration: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU a copy of indices from the host would make every batch wait."""
    there, asked = torch.device("meta"), []

    def batch(self: ImageSet, indices: torch.Tensor) -> Any:
        asked.append(indices.device)
        return real(self, torch.arange(len(indices)))

    real = ImageSet.batch
    monkeypatch.setattr(ImageSet, "device", property(lambda self: there))
    monkeypatch.setattr(ImageSet, "batch", batch)
    ended = train(configuration())
    assert ended.code == 0, ended.err
    facts, training, statistics, evaluation = 7, 3, 2, 3  # batches; facts: one an image
    assert asked == [there] * (facts + training + statistics + evaluation)


def test_the_hub_is_never_asked(train: Train, configuration: Build) -> None:
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.__main__.load_config", lambda *_: asked.append(dict(os.environ)))
        train(configuration())
    assert asked[0]["HF_HUB_OFFLINE"] == "1"


def test_a_full_disk_is_told_and_earlier_files_stay(
    configuration: Build, small_disk: Callable[[int], Path], tmp_path: Path, python: Python
) -> None:
    folder = small_disk(200) / "run"
    config = tmp_path / "c.json"
    config.write_text(json.dumps(configuration(num_epochs=100, checkpoints={"save": "model"})))
    done = python("-m", "trainer", "--config", str(config), "--run-folder", str(folder))
    assert done.returncode == 6, done.stderr
    assert "no space left on the disk" in done.stderr and "Traceback" not in done.stderr
    kept = sorted((folder / "model").glob("model_checkpoint_*.pt"))
    assert kept and all(load_checkpoint(path)["state"] for path in kept)
    assert load_checkpoint(folder / "model/best.pt")["state"]
    assert [path.name for path in folder.rglob(".*")] == []
    events = EventReader(folder / "metrics.jsonl").new()
    assert next(event["epoch"] for event in events if event["event"] == "epoch") == 1


@pytest.mark.parametrize("kilobytes", [4, 8])
def test_a_disk_too_full_for_predictions(
    train: Train, configuration: Build, small_disk: Callable[[int], Path], kilobytes: int
) -> None:
    output = small_disk(kilobytes)
    ended = train(configuration(data={"test_output_path": str(output)}))
    assert ended.code == 6, ended.err
    assert list(output.iterdir()) == []


def test_memory_that_runs_out_is_exit_code_five(
    train: Train, configuration: Build, tmp_path: Path
) -> None:
    terabytes = layers_file(tmp_path, width=1 << 18, depth=1)
    ended = train(configuration(layers=terabytes))
    assert ended.code == 5, ended.err
    assert ended.result["reason"].startswith("out of memory")


def test_errors_of_the_libraries_are_translated() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert isinstance(translated(caught.value), OutOfMemory)
    with pytest.raises(MemoryError) as numpy:
        np.empty(1 << 60, np.uint8)
    assert isinstance(translated(numpy.value), OutOfMemory)
    assert isinstance(translated(torch.OutOfMemoryError("CUDA out of memory.\nmore")), OutOfMemory)
    full = translated(OSError(28, "No space left on device", "a.pt"))
    assert isinstance(full, NoSpace) and "a.pt" in str(full)
    assert translated(OSError(13, "Permission denied")) is None
    assert translated(RuntimeError("shapes differ")) is None
    known = InputError("a", "b")
    assert translated(known) is known
