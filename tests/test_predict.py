"""Using a model without configuration and masks: folders, arrays, odd files, containers."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from tests import studies
from tests.conftest import Ended
from trainer.checkpoint import load_checkpoint, save_checkpoint
from trainer.config import Transform
from trainer.errors import InputError, Stopped
from trainer.metrics import dice
from trainer.predict import load_model, predict_folder
from trainer.predict_output import Record, png_names
from trainer.stopping import StopRequest

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def model(trained: Ended, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint of the trained run, as best_model/ has one."""
    folder = tmp_path_factory.mktemp("model") / "best_model"
    folder.mkdir()
    shutil.copyfile(trained.folder / "model/best.pt", folder / "best_model_file.pt")
    return folder


@pytest.fixture
def images(data: Path, tmp_path: Path) -> Path:
    shutil.copytree(data / "test/inputs", tmp_path / "new/some (1)")
    return tmp_path / "new"


def masks_of(out: Path, record: Record) -> dict[str, np.ndarray]:
    return {i.name: np.asarray(Image.open(out / i.mask)) for i in record.images}


def test_masks_have_the_images_size_and_the_evaluations_dice(
    model: Path, trained: Ended, data: Path, images: Path, tmp_path: Path
) -> None:
    record = predict_folder(images, model, tmp_path / "out", "cpu")
    scored = {one["name"]: one for one in trained.result["evaluation"]["images"]}
    assert len(record.images) == len(scored) == 5
    for name, mask in masks_of(tmp_path / "out", record).items():
        image = Image.open(images / name)
        assert mask.shape == (image.size[1], image.size[0])
        assert set(np.unique(mask)) <= {0, 255}
        truth = np.asarray(Image.open(data / "test/targets" / Path(name).name)) > 127
        p = mask > 0
        hits, false, missed = (p & truth).sum(), (p & ~truth).sum(), (~p & truth).sum()
        assert dice(int(hits), int(false), int(missed)) == scored[Path(name).name]["dice"]
        drawn = np.asarray(Image.open(tmp_path / "out/overlays" / name))
        assert drawn.shape == (*mask.shape, 3)
        grey = np.asarray(image.convert("RGB"))
        np.testing.assert_array_equal((drawn != grey).any(axis=2) & ~p, False)
    with h5py.File(tmp_path / "out/predictions.h5") as file:
        assert file["some (1)/case_0.png"].shape == (1, 16, 16)


def test_arrays_in_python(model: Path, data: Path) -> None:
    used = load_model(model)
    assert used.classes == ["background", "foreground"]
    array = np.asarray(Image.open(data / "test/inputs/case_0.png"))
    mask = used.predict(array)
    assert mask.shape == array.shape and mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 1}
    np.testing.assert_array_equal(used.predict(np.stack([array] * 3, axis=2)), mask)
    probabilities = used.probabilities(array)
    assert (
        probabilities.shape == (1, 16, 16) and 0 <= probabilities.min() <= probabilities.max() <= 1
    )
    for wrong in (array.astype(np.float32), array[0], np.zeros((3, 0), np.uint8)):
        with pytest.raises(InputError, match="an array of shape"):
            used.predict(wrong)


def test_a_second_run_does_what_is_new(model: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = predict_folder(images, model, out, "cpu")
    kept = (out / "masks/some (1)/case_0.png").stat().st_mtime_ns
    Image.open(images / "some (1)/case_1.png").rotate(180).save(images / "some (1)/case_2.png")
    shutil.copyfile(images / "some (1)/case_1.png", images / "extra.png")
    (images / "some (1)/case_4.png").unlink()
    again = predict_folder(images, model, out, "cpu")
    new = {one.name for one in again.images if one.new}
    assert new == {"extra.png", "some (1)/case_2.png"}
    assert len(again.images) == len(first.images) == 5
    assert (out / "masks/some (1)/case_0.png").stat().st_mtime_ns == kept
    with h5py.File(out / "predictions.h5") as file:
        assert "extra.png" in file and "some (1)/case_4.png" not in file


def test_images_of_one_stem_keep_their_masks(model: Path, images: Path, tmp_path: Path) -> None:
    folder = images / "some (1)"
    first = predict_folder(images, model, tmp_path / "out", "cpu")
    Image.open(folder / "case_1.png").save(folder / "case_0.bmp")  # comes before case_0.png
    again = predict_folder(images, model, tmp_path / "out", "cpu")
    masks = {one.name: one.mask for one in again.images}
    assert masks["some (1)/case_0.png"] == first.images[0].mask
    assert masks["some (1)/case_0.bmp"] == "masks/some (1)/case_0.bmp.png"
    same = masks_of(tmp_path / "out", again)
    np.testing.assert_array_equal(same["some (1)/case_0.bmp"], same["some (1)/case_1.png"])


def test_a_run_that_is_stopped_goes_on(model: Path, images: Path, tmp_path: Path) -> None:
    stop = StopRequest()

    def progress(done: int, total: int, name: str) -> None:
        if done == 2:
            stop.ask("enough")

    out = tmp_path / "out"
    with pytest.raises(Stopped):
        predict_folder(images, model, out, "cpu", progress=progress, stop=stop)
    assert len(json.loads((out / "predict.json").read_text())["images"]) == 2
    record = predict_folder(images, model, out, "cpu")
    assert [one.new for one in record.images] == [False, False, True, True, True]
    with h5py.File(out / "predictions.h5") as file:
        assert len(file["some (1)"]) == 5


def test_odd_and_unreadable_images_are_named_and_the_rest_is_done(
    model: Path, images: Path, tmp_path: Path
) -> None:
    folder = images / "some (1)"
    white = np.full((20, 20), 255, np.uint8)
    Image.fromarray(white).save(images / "white.png")
    Image.fromarray(np.full((20, 20, 3), (90, 0, 0), np.uint8)).save(images / "red.png")
    Image.fromarray(white[:4]).save(images / "tiny.png")
    Image.fromarray(white.astype(np.int32) * 100).convert("I;16").save(images / "deep.png")
    (images / "notes.txt").write_text("seen on Monday")
    (images / "broken.png").write_bytes((folder / "case_0.png").read_bytes()[:60])
    Image.fromarray(white).save(folder / "case_0_mask.png")
    Image.fromarray(white).save(folder / "case_0.bmp")
    record = predict_folder(images, model, tmp_path / "out", "cpu")
    done = {one.name: " ".join(one.odd) for one in record.images}
    over = {one.name: one.reason for one in record.skipped}
    assert "brightness 255" in done["white.png"]
    assert "it has colour" in done["red.png"]
    assert "20x4 pixels" in done["tiny.png"]
    assert done["some (1)/case_1.png"] == ""
    assert "16" in over["deep.png"] or "8 bits" in over["deep.png"]
    assert "cannot be read" in over["broken.png"]
    assert "not an image" in over["notes.txt"]
    assert "mask of case_0" in over["some (1)/case_0_mask.png"]
    files = [one.mask for one in record.images]
    assert len(files) == len(set(files)) == len(record.images) == 9


def test_what_lies_in_the_output_folder_stays(model: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "masks").mkdir()
    with pytest.raises(InputError, match="holds other things: masks"):
        predict_folder(images, model, out, "cpu")
    (out / "masks").rmdir()
    (out / "output_1.h5").write_bytes(b"of the trainer")
    predict_folder(images, model, out, "cpu")
    with pytest.raises(InputError, match="holds the predictions of"):
        predict_folder(images / "some (1)", model, out, "cpu")
    with pytest.raises(InputError, match="is the folder of the images"):
        predict_folder(images, model, images, "cpu")


def test_names_of_masks() -> None:
    images = ["a.png", "a.bmp", "b.jpg", "d/a.bmp", "a.bmp.png", "c.jpg", "c.bmp"]
    names = png_names(images)
    assert len(set(names.values())) == len(images)
    assert (names["a.png"], names["b.jpg"], names["d/a.bmp"]) == ("a.png", "b.png", "d/a.png")
    assert names["c.jpg"] == "c.jpg.png"


def test_results_inside_the_folder_are_no_images(model: Path, images: Path) -> None:
    out = images / "predictions"
    assert len(predict_folder(images, model, out, "cpu").images) == 5
    again = predict_folder(images, model, out, "cpu")
    assert [one.new for one in again.images] == [False] * 5 and not again.skipped


def test_the_record_of_a_run_is_not_trusted(model: Path, images: Path, tmp_path: Path) -> None:
    out, victim = tmp_path / "out", tmp_path / "victim.png"
    victim.write_bytes(b"mine")
    predict_folder(images, model, out, "cpu")
    record = json.loads((out / "predict.json").read_text())
    record["images"][0] |= {"mask": "masks/../../victim.png", "sha256": "0" * 64}
    (out / "predict.json").write_text(json.dumps(record))
    again = predict_folder(images, model, out, "cpu")
    assert again.images[0].new and victim.read_bytes() == b"mine"
    for content in ("[]", '{"model": 3}', '{"images": [{"name": "x"}]}', "no JSON"):
        (out / "predict.json").write_text(content)
        with pytest.raises(InputError, match="is no record of predictions"):
            predict_folder(images, model, out, "cpu")


@pytest.mark.parametrize("place", ["masks", "overlays", "masks/some (1)"])
def test_links_in_the_output_are_not_followed(
    model: Path, images: Path, tmp_path: Path, place: str
) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    predict_folder(images, model, out, "cpu")
    shutil.rmtree(out / place)
    (out / place).symlink_to(elsewhere)
    with pytest.raises(InputError, match="is a link"):
        predict_folder(images, model, out, "cpu")
    assert not any(elsewhere.iterdir())


def test_removed_probabilities_are_made_again(model: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict_folder(images, model, out, "cpu")
    (out / "predictions.h5").unlink()
    assert all(one.new for one in predict_folder(images, model, out, "cpu").images)
    with h5py.File(out / "predictions.h5") as file:
        assert len(file["some (1)"]) == 5


def test_a_name_that_is_no_text(model: Path, images: Path, tmp_path: Path) -> None:
    source = os.fsencode(images / "some (1)/case_0.png")
    shutil.copyfile(source, os.fsencode(images) + b"/\xff.png")
    record = predict_folder(images, model, tmp_path / "out", "cpu")
    assert len(record.images) == 5 and "no UTF-8" in record.skipped[0].reason


@pytest.mark.parametrize(
    "use", [[], {"image_size": [64]}, {"transforms": [{"spin": 3}]}, {"masks": {"classes": 7}}]
)
def test_a_checkpoint_that_is_damaged(model: Path, tmp_path: Path, use: Any) -> None:
    content = load_checkpoint(model / "best_model_file.pt")
    content["use"] = use
    save_checkpoint(tmp_path / "m.pt", content)
    with pytest.raises(InputError, match=r"m\.pt, use"):
        load_model(tmp_path / "m.pt")


def test_flipped_bytes_and_weights_that_are_no_numbers(model: Path, tmp_path: Path) -> None:
    data = bytearray((model / "best_model_file.pt").read_bytes())
    at = len(data) // 2
    data[at : at + 50] = bytes(byte ^ 255 for byte in data[at : at + 50])
    (tmp_path / "flipped.pt").write_bytes(data)
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        load_model(tmp_path / "flipped.pt")
    content = load_checkpoint(model / "best_model_file.pt")
    next(iter(content["state"].values())).fill_(float("nan"))
    save_checkpoint(tmp_path / "nan.pt", content)
    with pytest.raises(InputError, match="are not numbers"):
        load_model(tmp_path / "nan.pt")


def test_pipes_and_folders_that_cannot_be_made(model: Path, images: Path, tmp_path: Path) -> None:
    os.mkfifo(images / "pipe.png")
    record = predict_folder(images, model, tmp_path / "out", "cpu")
    assert [one.reason for one in record.skipped] == ["this is no plain file"]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be a folder for results"):
        predict_folder(images, model, tmp_path / "file/x", "cpu")


@pytest.mark.slow
def test_files_of_the_user_in_the_output_stay(model: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "trainer.log").write_text("mine")
    given = ("predict", "new", "--out", "out", "--model", str(model), "--launcher", "process")
    refused = studies.driver(tmp_path, *given)
    assert refused.returncode == 2 and "holds other things: trainer.log" in refused.stderr
    assert (out / "trainer.log").read_text() == "mine"
    (out / "trainer.log").unlink()
    folder = os.open(out, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    busy = studies.driver(tmp_path, *given)
    os.close(folder)
    assert busy.returncode == 2 and "another prediction writes into it" in busy.stderr


@pytest.mark.parametrize("content", [None, b"", b"not a checkpoint"])
def test_no_model(tmp_path: Path, images: Path, content: bytes | None) -> None:
    (tmp_path / "m").mkdir()
    if content is not None:
        (tmp_path / "m/best_model_file.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"there is no model|cannot be read as a checkpoint"):
        predict_folder(images, tmp_path / "m", tmp_path / "out", "cpu")


def test_nothing_to_predict(model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="there is no image"):
        predict_folder(tmp_path / "empty", model, tmp_path / "out", "cpu")
    (tmp_path / "empty/a.png").write_bytes(b"no")
    with pytest.raises(InputError, match="nothing could be predicted"):
        predict_folder(tmp_path / "empty", model, tmp_path / "out", "cpu")
    assert not (tmp_path / "out/predict.json").exists()


@pytest.mark.slow
def test_the_command_as_a_process(model: Path, images: Path, tmp_path: Path) -> None:
    command = ("predict", "new", "--model", str(model), "--threads", "1", "--launcher", "process")
    (images / "broken.png").write_bytes(b"no")
    ended = studies.driver(tmp_path, *command)
    assert ended.returncode == 0, ended.stderr
    assert "5 images predicted" in ended.stdout and "passed over: broken.png" in ended.stdout
    out = tmp_path / "predictions"
    assert sorted(p.name for p in out.iterdir()) == [
        *("masks", "overlays", "predict.json", "predictions.h5")
    ]
    again = studies.driver(tmp_path, *command)
    assert "(0 new, 5 done before)" in again.stdout, again.stderr
    wrong = studies.driver(tmp_path, "predict", "new", "--model", "nothing")
    assert wrong.returncode == 2 and "there is no model" in wrong.stderr


@pytest.mark.slow
@pytest.mark.docker
def test_a_container_with_the_model_alone(model: Path, images: Path, tmp_path: Path) -> None:
    image = studies.our_image()
    elsewhere = tmp_path / "another machine/best_model"
    shutil.copytree(model, elsewhere)
    options = ("--launcher", "docker", "--docker-image", image, "--threads", "1")
    ended = studies.driver(elsewhere.parent, "predict", str(images), *options)
    assert ended.returncode == 0, ended.stderr
    predict_folder(images, model, tmp_path / "here", "cpu")
    for path in (tmp_path / "here/masks").rglob("*.png"):
        other = elsewhere.parent / "predictions/masks" / path.relative_to(tmp_path / "here/masks")
        np.testing.assert_array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(other)))
    record = json.loads((elsewhere.parent / "predictions/predict.json").read_text())
    assert record["source"] == str(images)


@pytest.mark.slow
def test_a_fresh_clone_elsewhere(model: Path, images: Path, tmp_path: Path) -> None:
    """The files of the repository and the folder best_model/, and nothing else."""
    clone = tmp_path / "clone"
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=studies.ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in names:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(studies.ROOT / name, clone / name)
    shutil.copytree(model, clone / "best_model", dirs_exist_ok=True)
    command = [
        sys.executable,
        "rml_optimization.py",
        "predict",
        str(images),
        "--launcher",
        "process",
    ]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    ended = subprocess.run(command, cwd=clone, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    here = predict_folder(images, model, tmp_path / "here", "cpu")
    there = json.loads((clone / "predictions/predict.json").read_text())
    assert [i["pixels"] for i in there["images"]] == [i.pixels for i in here.images]


def as_rgb(array: np.ndarray) -> Image.Image:
    return Image.fromarray(np.stack([array, array // 2, 255 - array], axis=2))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["colour", "grey in three channels", "palette", "turned"])
def test_masks_of_several_classes_equal_the_evaluation(tmp_path: Path, kind: str) -> None:
    """A study of three classes on other kinds of images: every Dice comes again from the masks."""
    data = studies.make_data(tmp_path / "data", images=16)
    for number, path in enumerate(sorted(data.glob("*/inputs/*.png"))):
        array = np.asarray(Image.open(path))
        target = path.parents[1] / "targets" / path.name
        mask = np.asarray(Image.open(target))
        mask = np.where(mask > 0, 100 + 100 * (number % 2), 0).astype(np.uint8)
        if kind == "colour":
            as_rgb(array).save(path)
        elif kind == "palette":
            as_rgb(array).quantize(64).save(path)
        elif kind == "turned":
            upright = Image.fromarray(array)
            exif = Image.Exif()
            exif[0x0112] = 3
            upright.rotate(180).save(path, exif=exif)
        else:
            Image.fromarray(array).convert("RGB").save(path)
        Image.fromarray(mask).save(target)
    (tmp_path / "l.json").write_text('{"none": 0, "a": 100, "b": 200}')
    (tmp_path / "n.json").write_text('{"network": "unet", "width": 2, "depth": 2}')
    given = ("--data", "data", "--labels", "l.json", "--layers", "n.json", "--num-trials", "1")
    ended = studies.driver(tmp_path, *given, *studies.SMALL, "--threads", "1")
    assert ended.returncode == 0, ended.stderr
    record = predict_folder(data / "test/inputs", tmp_path / "best_model", tmp_path / "p", "cpu")
    (result,) = tmp_path.glob("runs/*/test-0000/result.json")
    scored = {i["name"]: i for i in json.loads(result.read_text())["evaluation"]["images"]}
    for name, mask in masks_of(tmp_path / "p", record).items():
        truth = np.asarray(Image.open(data / "test/targets" / name))
        assert mask.shape == truth.shape and set(np.unique(mask)) <= {0, 100, 200}
        for number, value in enumerate((0, 100, 200)):
            p, t = mask == value, truth == value
            counts = {"tp": p & t, "fp": p & ~t, "fn": ~p & t, "tn": ~p & ~t}
            own = scored[name]["classes"][number]["own"]
            assert {key: int(cells.sum()) for key, cells in counts.items()} == own, name


def test_a_model_of_the_middle_of_images_gives_no_mask_of_the_whole(trained: Ended) -> None:
    model = load_model(trained.folder / "model/best.pt", "cpu")
    image = np.zeros((20, 26, 3), np.uint8)
    assert model.predict(image).shape == (20, 26)
    crop = Transform.model_validate({"center_crop": [16, 16]})
    cropped = replace(model, use=model.use.model_copy(update={"transforms": [crop]}))
    with pytest.raises(InputError, match="leaves no mask of the whole image"):
        cropped.predict(image)
    assert cropped.probabilities(image).shape == (1, 16, 16)
