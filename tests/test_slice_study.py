"""Studies on arrays of slices, with the real trainer: as processes, and in containers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from study.slices import SliceDataset, base_of, read_slices
from study.statistics import RESAMPLES, accuracy_interval, mean_interval, paired
from tests import studies
from tests.slices import EACH, write_slices
from trainer.data.split import patient_of, read_split, row_ranges
from trainer.errors import InputError
from trainer.metrics import Counts, ImageScore, accuracy, total
from trainer.prepare.__main__ import main as prepare

NETWORK = {"network": "unet", "width": 4, "depth": 2, "weights": None}


@pytest.fixture(scope="module")
def brains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slices(tmp_path_factory.mktemp("data") / "brains", side=32)


def opened(folder: Path) -> SliceDataset:
    return read_slices(folder, base_of(folder))


def study(here: Path, data: Path, *more: str, launcher: str = "process") -> str:
    (here / "layers.json").write_text(json.dumps(NETWORK))
    options = ("--data", str(data), "--launcher", launcher, "--study-name", "s", "--threads", "1")
    ended = studies.driver(here, *options, "--layers", "layers.json", *more, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return " ".join(ended.stdout.replace("|", " ").split())


def refused(here: Path, data: Path, *more: str) -> str:
    code, out, err = studies.typed_here(here, "--data", str(data), "--launcher", "process", *more)
    assert code == 2, out + err
    assert not (here / "runs").exists()
    return " ".join(err.split())


def listed(here: Path) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = json.loads((here / "list_acc.json").read_text())
    return content


# ---- parts ----
def test_whole_patients_are_held_out_by_the_seed(brains: Path) -> None:
    dataset = opened(brains)
    parts = dataset.parts_for(0, "validation")
    patients = dataset.patients_of(parts)
    held = {int(name) // EACH for name in parts.validation}
    assert len(parts.validation) == len(held) * EACH == EACH
    assert {int(name) // EACH for name in parts.training} == set(range(8)) - held
    assert list(patients["validation"]) == [f"Brats17_{number:02d}" for number in held]
    assert not set(patients["training"]) & set(patients["validation"])
    assert patients["test"] == {"Brats17_08": ["000000-000011"], "Brats17_09": ["000012-000023"]}
    assert len(parts.test) == 2 * EACH
    assert set(patient_of(patients["training"])) == set(parts.training)
    assert parts == dataset.parts_for(0, "validation")
    drawn = {tuple(dataset.parts_for(seed, "validation").validation) for seed in range(9)}
    assert len(drawn) > 2
    all_of_it = dataset.parts_for(0, "test")
    assert len(all_of_it.training) == 8 * EACH and not all_of_it.validation


def test_a_test_is_drawn_where_there_are_no_test_arrays(tmp_path: Path) -> None:
    dataset = opened(write_slices(tmp_path, train=8, test=0))
    parts = dataset.parts_for(1, "validation")
    assert [len(names) // EACH for names in parts.model_dump().values()] == [6, 1, 1]
    assert len({*parts.training, *parts.validation, *parts.test}) == 8 * EACH


def test_without_patients_the_last_slices_are_held_out_and_it_is_said(tmp_path: Path) -> None:
    dataset = opened(write_slices(tmp_path, train=5, test=1, record=False))
    parts = dataset.parts_for(0, "validation")
    assert parts.validation == [f"{row:06d}" for row in range(51, 60)]
    assert len(parts.training) == 51
    told = dict(dataset.rows(parts, "validation"))["Patients"]
    assert "there is no slices.json" in told and "it is optimistic" in told


def test_one_brain_is_split_by_slice_and_it_is_said(tmp_path: Path) -> None:
    dataset = opened(write_slices(tmp_path, train=1, test=1))
    parts = dataset.parts_for(0, "validation")
    assert parts.validation == ["000010", "000011"]
    told = dict(dataset.rows(parts, "validation"))["Patients"]
    assert "validation is by slice" in told


def test_what_predicting_nothing_scores(brains: Path) -> None:
    dataset = opened(brains)
    parts = dataset.parts_for(0, "validation")
    told = dict(dataset.rows(parts, "validation"))
    masks = np.load(brains / "msks_train.npy").any(axis=3)[[int(n) for n in parts.validation]]
    foreground, background = int(masks.sum()), int((~masks).sum())
    value = 0.5 * 2 * background / (2 * background + foreground)
    assert told["Predicting nothing scores"] == f"accuracy {value:.3f}, foreground Dice 0"
    assert "30 slices have none" in told["Foreground"]
    assert told["Channels, target"] == "flair; wt"


def test_a_test_without_masks_is_predicted_only(tmp_path: Path) -> None:
    write_slices(tmp_path, train=4, test=2)
    (tmp_path / "msks_test.npy").unlink()
    dataset = opened(tmp_path)
    assert not dataset.test_has_truth
    told = dict(dataset.rows(dataset.parts_for(0, "validation"), "validation"))
    assert "24 test (without masks: predicted only)" in told["Slices"]
    assert "12 slices have none" in told["Foreground"]
    more = ("--select-on", "test", "--layers", "layers/unet_small.json")
    assert "the test slices have no masks" in refused(tmp_path, tmp_path, *more)


def test_patients_of_both_parts_are_told_loudly(tmp_path: Path) -> None:
    """As the published split by slice leaves them."""
    write_slices(tmp_path, train=4, test=2)
    record = json.loads((tmp_path / "slices.json").read_text())
    record["parts"]["test"][0]["patient"] = record["parts"]["train"][1]["patient"]
    (tmp_path / "slices.json").write_text(json.dumps(record))
    dataset = opened(tmp_path)
    told = dict(dataset.rows(dataset.parts_for(0, "validation"), "validation"))["Patients"]
    assert "1 TEST PATIENT IS TRAINED ON, too" in told
    both = dict(dataset.rows(dataset.parts_for(0, "test"), "test"))["Patients"]
    assert "1 TEST PATIENT IS TRAINED ON, too" in both


def test_foreground_is_counted_in_pieces(brains: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = opened(brains).train.foreground
    monkeypatch.setattr("study.slices.ROWS_AT_ONCE", 5)
    pieces = opened(brains).train.foreground
    assert whole is not None and pieces is not None
    np.testing.assert_array_equal(pieces, whole)
    truth = np.load(brains / "msks_train.npy")[..., 1:].any(axis=3)
    np.testing.assert_array_equal(whole, truth.sum(axis=(1, 2)))


@pytest.mark.parametrize("name", ["imgs_test.npy", "msks_train.npy"])
def test_a_slice_that_is_no_numbers_is_named(tmp_path: Path, name: str) -> None:
    write_slices(tmp_path)
    array = np.load(tmp_path / name).astype(np.float32)
    array[17, 3, 3, 2] = np.nan
    np.save(tmp_path / name, array)
    with pytest.raises(InputError, match=rf"{name}: slice 17 has values that are not"):
        opened(tmp_path)


def test_a_split_with_wrong_ranges_is_told(tmp_path: Path) -> None:
    parts = {"training": ["000001"], "validation": [], "test": []}
    split = {"seed": 0, "select_on": "test", "parts": parts, "masks": {"threshold": 0.5}}
    split["patients"] = {"test": {"a": ["3"]}}
    (tmp_path / "split.json").write_text(json.dumps(split))
    with pytest.raises(InputError, match=r"patients.test.a.0"):
        read_split(tmp_path / "split.json")


def test_arrays_of_two_preparations_are_told(tmp_path: Path) -> None:
    write_slices(tmp_path)
    base = base_of(tmp_path)
    base["data"]["slices"].pop("channels")
    np.save(tmp_path / "imgs_test.npy", np.load(tmp_path / "imgs_test.npy")[..., :3])
    with pytest.raises(InputError, match=r"imgs_test.npy: has other channels"):
        read_slices(tmp_path, base)


def test_batches_are_made_to_fit(tmp_path: Path) -> None:
    for rows, batch in ((60, 4), (300, 10), (5000, 32)):
        np.save(tmp_path / "imgs_train.npy", np.zeros((rows, 2, 2, 4), np.uint8))
        data = base_of(tmp_path)["data"]
        assert (data["batch_size"], data["test_batch_size"]) == (batch, 2 * batch)


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    write_slices(tmp_path, train=2, test=1)
    before = opened(tmp_path).fingerprint
    assert opened(tmp_path).fingerprint == before
    record = (tmp_path / "slices.json").read_text()
    (tmp_path / "slices.json").write_text(record.replace("Brats17_00", "Brats17_77"))
    assert opened(tmp_path).fingerprint != before
    (tmp_path / "slices.json").write_text(record)
    masks = np.load(tmp_path / "msks_train.npy")
    masks[7] = 1 - masks[7]
    np.save(tmp_path / "msks_train.npy", masks)
    assert opened(tmp_path).fingerprint != before


def test_rows_are_told_as_ranges() -> None:
    rows = [0, 3, 4, 5, 9]
    assert row_ranges(rows) == ["000000-000000", "000003-000005", "000009-000009"]
    assert list(patient_of({"a": row_ranges(rows)})) == [f"{row:06d}" for row in rows]
    assert row_ranges([]) == []


def test_intervals_are_over_patients() -> None:
    def score(name: str, tp: int) -> ImageScore:
        counts = (Counts(tp, 0, 10 - tp, 90),)
        return ImageScore(name, counts, counts)

    found = [9] * 50 + [1] * 50
    scores = [score(f"{row:06d}", tp) for row, tp in enumerate(found)]
    of = {one.name: str(int(one.name) // 10) for one in scores}  # ten patients
    dices, names = [one.dice for one in scores], [one.name for one in scores]
    alone, together = mean_interval(dices), mean_interval(dices, names, of)
    assert alone is not None and together is not None
    assert alone[1] - alone[0] < 0.35 < together[1] - together[0]
    assert mean_interval(dices[:40], names[:40], of) is None  # four patients
    # The interval is that of means which are drawn and computed one by one.
    generator = np.random.default_rng(0)
    rows = np.array(dices).reshape(10, 10)
    means = [rows[generator.integers(10, size=10)].mean() for _ in range(RESAMPLES)]
    assert together == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))


def test_the_interval_of_an_accuracy_is_that_of_the_counts_together() -> None:
    generator = np.random.default_rng(5)
    scores = []
    for row in range(12):
        counts = (Counts(*generator.integers(1, 50, 4).tolist()),)
        scores.append(ImageScore(str(row), counts, counts))
    generator = np.random.default_rng(0)
    drawn = [[scores[i] for i in generator.integers(12, size=12)] for _ in range(RESAMPLES)]
    values = [accuracy(total(one)) for one in drawn]
    assert accuracy_interval(scores) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])))


def test_a_difference_of_two_patients_is_never_sure() -> None:
    a, names = np.zeros(100), [f"{row:06d}" for row in range(100)]
    b = a + np.linspace(0.1, 0.2, 100)
    of = {name: "ab"[int(name) // 50] for name in names}
    assert paired(a, b, lambda rows: float(rows.mean())).p < 0.001
    assert paired(a, b, lambda rows: float(rows.mean()), names, of).p == pytest.approx(
        0.5, abs=0.02
    )


# ---- wrong input ----
def test_arrays_that_no_study_can_use_are_told(tmp_path: Path) -> None:
    folder = write_slices(tmp_path / "data", train=2, test=1)
    images, masks = folder / "imgs_train.npy", folder / "msks_train.npy"
    whole = np.load(masks)
    masks.unlink()
    assert "msks_train.npy: there is no such file" in refused(tmp_path, folder)
    np.save(masks, whole[:3])
    assert "(3, 16, 16) slices, height, width" in refused(tmp_path, folder)
    np.save(masks, np.zeros_like(whole))
    assert "no slice has wt" in refused(tmp_path, folder)
    np.save(masks, whole)
    for name in ("imgs_test.npy", "msks_test.npy"):
        np.save(folder / name, np.load(folder / name)[:, :8])
    assert "slices of 16x8 pixels, imgs_train.npy of 16x16" in refused(tmp_path, folder)
    (folder / "msks_test.npy").unlink()
    (folder / "imgs_test.npy").unlink()
    images.unlink()
    assert "imgs_train.npy: there is no such file" in refused(tmp_path, folder)
    few = write_slices(tmp_path / "few", train=1, test=0, record=False)
    for name in ("imgs_train.npy", "msks_train.npy"):
        np.save(few / name, np.load(few / name)[:9])
    assert "has 9 slices; accepted: at least 10" in refused(tmp_path, few)


def test_a_part_without_foreground_is_told(tmp_path: Path) -> None:
    folder = write_slices(tmp_path / "data", train=4, test=1)
    parts = opened(folder).parts_for(0, "validation")
    masks = np.load(folder / "msks_train.npy")
    masks[[int(name) for name in parts.validation]] = 0
    np.save(folder / "msks_train.npy", masks)
    with pytest.raises(InputError, match="no slice of the validation part has foreground"):
        opened(folder).check_parts(parts)
    assert "no slice of the validation part" in refused(tmp_path, folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--image-size", "64"), "--image-size: arrays of slices have the size"),
        (("--augment", "light"), "--augment: arrays of slices are not augmented"),
        (("--labels", "labels.json"), "--labels: data.slices.target of --config"),
        (("--group-by", "x"), "--group-by: the slices of a patient stay together"),
        (("--split", "nothing.json"), "no such split file"),
        (("--trial-command", "sh {config}"), "is for images, and"),
        (("--layers", "layers/unet3d_small.json"), "is no network of slices"),
        (("--layers", "layers/keras_resunet.json"), "is a Keras network"),
        (("--layers", "layers/resunet.json"), "in_channels is 3, of the slices it would see 1"),
    ],
)
def test_what_a_study_of_slices_cannot_use_is_told(
    brains: Path, tmp_path: Path, more: tuple[str, str], told: str
) -> None:
    assert told in refused(tmp_path, brains, "--num-trials", "1", *more)


@pytest.mark.parametrize(
    ("slices", "told"),
    [
        ({"channels": ["flare"]}, "no 'flare'; did you mean 'flair'?"),
        ({"target": ["tumour"]}, "data.slices.target: no 'tumour'"),
        ({"target": []}, "data.slices.target"),
        ({"planes": [1]}, "data.slices.planes"),
        (None, "data.slices"),
    ],
)
def test_channels_of_a_base_that_are_not_there_are_told(
    brains: Path, tmp_path: Path, slices: dict[str, Any] | None, told: str
) -> None:
    base = json.loads((studies.ROOT / "configs/brain_slices.json").read_text())
    base["neural_network"]["data"]["slices"] = slices
    (tmp_path / "base.json").write_text(json.dumps(base))
    assert told in refused(tmp_path, brains, "--config", "base.json")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "values", "told"),
    [
        ("data.slices.channels", [["flair"], ["t1"]], "channels and target are those of all"),
        ("layers.depth", [2, 7], "cannot take 32x32 pixels"),
        ("data.transforms", [[{"random_rotate": 3}]], "numpy takes none"),
    ],
)
def test_what_cannot_be_searched_over_slices_is_told(
    brains: Path, tmp_path: Path, key: str, values: list[Any], told: str
) -> None:
    (tmp_path / "layers.json").write_text(json.dumps(NETWORK))
    (tmp_path / "space.json").write_text(json.dumps({"parameters": {key: values}}))
    more = ("--space", "space.json", "--layers", "layers.json", "--num-trials", "1")
    assert told in refused(tmp_path, brains, *more)


def test_slices_are_checked_with_a_picture(brains: Path, tmp_path: Path) -> None:
    code, out, err = studies.typed_here(tmp_path, "check", "--data", str(brains))
    assert code == 0, err
    assert "84 training, 12 validation, 24 test" in out and (tmp_path / "check.png").exists()
    code, _, err = studies.typed_here(tmp_path, "check", "--data", str(brains), "--group-by", "x")
    assert code == 2 and "--group-by: the slices of a patient" in err


# ---- whole studies ----
@pytest.mark.slow
def test_a_plan_of_a_study_of_slices(brains: Path, tmp_path: Path) -> None:
    (tmp_path / "layers.json").write_text(json.dumps(NETWORK))
    shared = ("--data", str(brains), "--launcher", "process", "--threads", "1", "--no-gpu")
    code, out, err = studies.typed_here(tmp_path, "plan", *shared, "--layers", "layers.json")
    assert code == 0, out + err
    assert "s a step of 4 slices" in out and "The study" in out


@pytest.mark.slow
def test_a_study_of_slices_from_their_folder_alone(tmp_path: Path) -> None:
    assert prepare(["phantoms", "brats", str(tmp_path / "scans"), "--size", "40"]) == 0
    source, target = str(tmp_path / "scans"), str(tmp_path / "b")
    assert prepare(["brats-slices", source, target, "--size", "32"]) == 0
    told = study(tmp_path, tmp_path / "b", "--num-trials", "3", "--num-epochs", "6", "--no-prune")
    for part in (
        "312: 208 training, 52 validation, 52 test; chosen on validation",
        "8 training, 2 validation, 2 test",
        "flair; wt",
        "32x32 pixels, 8 slices",
        "configs/brain_slices.json, with batches that fit",
        "Losses log_dice, dice, bce",
        "3 complete, 0 pruned, 0 fail",
        "Intervals need 5 patients or more.",
    ):
        assert part in told, part
    first = listed(tmp_path)[0]
    assert (first["optimizer"], first["lr"], first["loss"]) == ("adam", 0.0005, "log_dice")
    assert max(one["foreground_dice"] for one in listed(tmp_path)) > 0.5
    split = json.loads((tmp_path / "runs/s/split.json").read_text())
    scored = json.loads((tmp_path / "runs/s/trial-0000/result.json").read_text())["evaluation"]
    assert [one["name"] for one in scored["images"]] == split["parts"]["validation"]
    assert len(split["patients"]["validation"]) == 2
    ran = studies.trainer(tmp_path, "--config=best_model/config_test.json")
    assert ran.returncode == 0, ran.stderr
    found = np.load(tmp_path / "predictions/msks_test_predictions.npy")
    assert found.shape == (52, 32, 32, 1)
    drawn = studies.module(tmp_path, "trainer.review", "predictions/output_1.h5")
    assert drawn.returncode == 0 and "12 of 52 slices, worst first" in drawn.stdout
    predicted = studies.driver(
        tmp_path, "predict", "b/imgs_test.npy", "--out", "mine", "--launcher", "process"
    )
    assert predicted.returncode == 0, predicted.stderr
    assert np.allclose(np.load(tmp_path / "mine/imgs_test_predictions.npy"), found, atol=1e-5)
    drawn = studies.module(tmp_path, "trainer.review", "mine/imgs_test_predictions.npy")
    assert drawn.returncode == 0 and "12 of 52 slices, worst first" in drawn.stdout


@pytest.mark.slow
def test_a_resumed_study_keeps_what_its_base_would_say(brains: Path, tmp_path: Path) -> None:
    typed = ("--num-epochs", "2", "--batch-size", "7", "--lr-range-max", "0.02")
    study(tmp_path, brains, "--num-trials", "1", *typed)
    told = study(tmp_path, brains, "--num-trials", "2", "--resume")
    assert "2 complete" in told and "32x32 pixels, 7 slices" in told
    configs = [
        json.loads((tmp_path / f"runs/s/trial-000{n}/config.json").read_text())["neural_network"]
        for n in (0, 1)
    ]
    assert [(one["num_epochs"], one["data"]["batch_size"]) for one in configs] == [(2, 7), (2, 7)]
    assert configs[0]["data"] == configs[1]["data"]


@pytest.mark.slow
def test_a_base_and_a_space_over_slices_on_test(brains: Path, tmp_path: Path) -> None:
    base = json.loads((studies.ROOT / "configs/brain_slices.json").read_text())
    base["neural_network"]["data"] |= {
        "batch_size": 16,
        "slices": {"channels": ["flair", "t1"], "target": ["tc"]},
    }
    (tmp_path / "base.json").write_text(json.dumps(base))
    space = {"grid": True, "parameters": {"optimizer.learning_rate": [0.001, 0.01]}}
    (tmp_path / "space.json").write_text(json.dumps(space))
    more = ("--config", "base.json", "--space", "space.json", "--select-on", "test")
    told = study(tmp_path, brains, *more, "--num-epochs", "2")
    assert "120: 96 training, 24 test; chosen on test" in told and "flair, t1; tc" in told
    assert "THE TEST SLICES" in told and "2 complete" in told
    data = json.loads((tmp_path / "runs/s/trial-0001/config.json").read_text())
    assert data["neural_network"]["data"]["batch_size"] == 16
    assert data["neural_network"]["data"]["test_input_path"].endswith("imgs_test.npy")
    tested = json.loads((tmp_path / "best_model/config_test.json").read_text())
    assert tested["neural_network"]["data"]["slices"]["target"] == ["tc"]


@pytest.mark.slow
def test_a_study_of_one_part_tests_on_patients_of_its_own(tmp_path: Path) -> None:
    data = write_slices(tmp_path / "data", train=8, test=0)
    told = study(tmp_path, data, "--num-trials", "1", "--num-epochs", "2")
    assert "96: 72 training, 12 validation, 12 test" in told
    split = json.loads((tmp_path / "runs/s/split.json").read_text())["parts"]
    ran = studies.trainer(tmp_path, "--config=best_model/config_test.json")
    assert ran.returncode == 0, ran.stderr
    with h5py.File(tmp_path / "predictions/output_1.h5") as file:
        assert list(file) == split["test"]


@pytest.mark.slow
@pytest.mark.docker
def test_a_study_of_slices_in_containers(tmp_path: Path) -> None:
    image = ("--docker-image", studies.our_image(), "--no-gpu")
    data = write_slices(tmp_path / "data")
    away = tmp_path / "away"
    away.mkdir()
    (data / "imgs_train.npy").rename(away / "imgs.npy")
    (data / "imgs_train.npy").symlink_to(away / "imgs.npy")
    more = ("--num-trials", "2", "--num-epochs", "4", "--no-prune", *image)
    told = study(tmp_path, data, *more, launcher="docker")
    assert "2 complete, 0 pruned, 0 fail" in told
    assert max(one["foreground_dice"] for one in listed(tmp_path)) > 0.3
    options = ("predict", "data/imgs_test.npy", "--out", "mine", "--launcher", "docker", *image)
    predicted = studies.driver(tmp_path, *options)
    assert predicted.returncode == 0, predicted.stderr
    assert np.load(tmp_path / "mine/imgs_test_predictions.npy").shape == (2 * EACH, 16, 16, 1)
