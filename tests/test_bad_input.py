"""Mistakes of a user: exit code 2, one message, nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import studies

ROOT = studies.ROOT


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return studies.make_data(tmp_path_factory.mktemp("good") / "data")


def refused(here: Path, *options: str, code: int = 2) -> str:
    """The message of a command that ends with exit code 2 and leaves no study."""
    before = sorted(p.name for p in here.iterdir())
    ended, out, err = studies.typed_here(here, *options)
    assert ended == code, out + err
    assert "Traceback" not in out + err
    assert sorted(p.name for p in here.iterdir() if p.name != "runs") == before
    assert not list((here / "runs").glob("*")) if (here / "runs").exists() else True
    return err


OPTIONS = [
    (["--data", "nowhere"], ["nowhere", "there is no such data folder", "--data"]),
    (["--optimizers", "adm"], ["unknown name 'adm'", "did you mean 'adam'", "rmsprop"]),
    (["--optimizers", ""], ["--optimizers", "no name is given"]),
    (["--loss", "dise"], ["--loss", "did you mean 'dice'"]),
    (["--loss", "nll"], ["nll does not fit one foreground class", "bce, dice"]),
    (["--lr-scheduler-kind", "stepp"], ["unknown name 'stepp'", "did you mean 'step'", "none"]),
    (["--lr-scheduler-kind", "warmup+"], ["--lr-scheduler-kind", "unknown name ''"]),
    (["--lr-scheduler-kind", "LinearWarmup"], ["unknown name", "did you mean 'warmup'"]),
    (["--launcher", "dokcer"], ["did you mean 'docker'", "auto, docker, process"]),
    (["--select-on", "tests"], ["did you mean 'test'"]),
    (["--metric", "acuracy"], ["did you mean 'accuracy'"]),
    (["--augment", "heavy"], ["light, none"]),
    (["--num-trials", "0"], ["--num-trials", "0 is too few"]),
    (["--num-epochs", "-1"], ["--num-epochs"]),
    (["--batch-size", "0"], ["--batch-size"]),
    (["--threads", "0"], ["--threads"]),
    (["--seed", "-1"], ["--seed"]),
    (["--keep-checkpoints", "0"], ["--keep-checkpoints"]),
    (["--num-trials", "many"], ["--num-trials", "integer"]),
    (["--num-trial", "3"], ["No such option", "--num-trials"]),
    (["studdy"], ["studdy"]),
    (["-lr-min", "0.1", "-lr-max", "0.01"], ["0.1 to 0.01 is empty"]),
    (["-lr-min", "-1"], ["-1 is not a positive rate"]),
    (["-lr-gamma", "2"], ["--lr-scheduler-gamma", "2"]),
    (["--layers", "nope.json"], ["there is no file 'nope.json'", "unet_small.json"]),
    (["--image-size", "100"], ["cannot take 100x100", "96 and 112"]),
    (["--image-size", "8"], ["16 and 32"]),
    (["--study-name", "a/b"], ["'a/b' is not a plain folder name"]),
    (["--study-name", ".."], ["'..' is not a plain folder name"]),
    (["--study-name", "nix", "--resume"], ["'nix'", "is not in sqlite:///rml_study.db"]),
    (["--resume"], ["no study was run in this folder"]),
    (["--storage", "study.db"], ["is not a storage URL", "sqlite:///study.db"]),
    (["--storage", "sqlite:///no/such/x.db"], ["there is no folder"]),
    (
        ["--storage", "postgresql://me:secret@localhost:1/x"],
        ["me:***@localhost", "cannot be opened"],
    ),
    (["--timeout", "soon"], ["'soon' is not a duration", "4h"]),
    (["--gpu"], ["no GPU was found", "--no-gpu"]),
    (["--num_procs", "4"], ["--num_procs", "is not built yet"]),
    (["--singularity-image", "x.sif"], ["--singularity-image", "is not built yet"]),
    (["-tl", "weights.h5"], ["there is no file 'weights.h5'"]),
    (["-tl", "nowhere.pt"], ["there is no file 'nowhere.pt'"]),
    (["--weights", "imagnet"], ["did you mean 'imagenet'"]),
    (["--weights", "imagenet"], ["the small U-Net has no published weights"]),
    (["--group-by", "(x"], ["is not a regular expression"]),
    (["--group-by", "zzz"], ["matches no image name", "image_000.png"]),
    (["--split", "nowhere.json"], ["nowhere.json", "no such split file"]),
    (["--docker-image", "x", "--launcher", "process"], ["exclude each other"]),
]


@pytest.mark.parametrize(("options", "told"), OPTIONS, ids=lambda value: " ".join(value)[:40])
def test_option(
    options: list[str],
    told: list[str],
    good: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = options if "--data" in options else ["--data", str(good), *options]
    given = given if "--launcher" in given or "x" in given else [*given, "--launcher", "process"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    code, out, err = studies.typed_here(tmp_path, *given)
    assert code == 2, out + err
    assert "Traceback" not in err
    for text in told:
        assert text in " ".join(err.split()), err
    assert list(tmp_path.iterdir()) == [] or not list((tmp_path / "runs").iterdir())
    assert "secret" not in err + out


Spoil = Callable[[Path], None]


def remove_mask(data: Path) -> None:
    (data / "train/targets/image_003.png").unlink()


def remove_image(data: Path) -> None:
    (data / "train/inputs/image_003.png").unlink()


def truncate(data: Path) -> None:
    path = data / "train/inputs/image_004.png"
    path.write_bytes(path.read_bytes()[:200])


def text_file(data: Path) -> None:
    (data / "test/inputs/image_001.png").write_text("this is no picture")


def other_file(data: Path) -> None:
    (data / "train/inputs/notes.txt").write_text("x")


def dicom_suffix(data: Path) -> None:
    (data / "train/inputs/scan.dcm").write_bytes(b"\0" * 128 + b"DICM")


def dicom_hidden(data: Path) -> None:
    (data / "train/inputs/image_002.png").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 100)


def sixteen_bit(data: Path) -> None:
    Image.fromarray(np.zeros((24, 32), np.uint16)).save(data / "train/inputs/image_002.png")


def other_size(data: Path) -> None:
    Image.fromarray(np.zeros((10, 10), np.uint8)).save(data / "train/targets/image_005.png")


def few(data: Path) -> None:
    for part in ("inputs", "targets"):
        for path in sorted((data / "train" / part).iterdir())[7:]:
            path.unlink()


def no_lesion(data: Path) -> None:
    for path in (data / "train/targets").iterdir():
        Image.fromarray(np.zeros((24, 32), np.uint8)).save(path)


def all_empty(data: Path) -> None:
    for path in data.glob("*/targets/*"):
        Image.fromarray(np.zeros((24, 32), np.uint8)).save(path)


def three_values(data: Path) -> None:
    for number, path in enumerate(sorted((data / "train/targets").iterdir())):
        mask = np.asarray(Image.open(path)).copy()
        mask[:3, :3] = 127 if number % 2 else 0
        Image.fromarray(mask).save(path)


def empty_folder(data: Path) -> None:
    shutil.rmtree(data)
    data.mkdir()


def no_targets(data: Path) -> None:
    shutil.rmtree(data / "train/targets")


def twin_stems(data: Path) -> None:
    Image.open(data / "train/inputs/image_001.png").save(data / "train/inputs/image_001.jpg")


DATA = [
    (remove_mask, ["image_003.png", "has no mask"]),
    (remove_image, ["image_003.png", "is a mask without an image"]),
    (truncate, ["image_004.png", "cannot be read as an image"]),
    (text_file, ["test/inputs/image_001.png", "cannot be read as an image"]),
    (other_file, ["notes.txt", "this is not an image"]),
    (dicom_suffix, ["scan.dcm", "DICOM", "convert"]),
    (dicom_hidden, ["image_002.png", "DICOM", "convert"]),
    (sixteen_bit, ["image_002.png", "more than 8 bits", "convert"]),
    (other_size, ["image_005.png", "10x10", "32x24"]),
    (few, ["has 7 images", "at least 10"]),
    (no_lesion, ["no training mask has a lesion"]),
    (all_empty, ["all masks are empty"]),
    (three_values, ["3 values", "127", "%"]),
    (empty_folder, ["it is empty"]),
    (no_targets, ["train/targets is missing"]),
    (twin_stems, ["image_001", "same stem"]),
]


@pytest.mark.parametrize(("spoil", "told"), DATA, ids=lambda value: getattr(value, "__name__", ""))
def test_data(spoil: Spoil, told: list[str], good: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(good, data)
    spoil(data)
    message = " ".join(refused(tmp_path, "--launcher", "process").split())
    for text in told:
        assert text in message


def test_several_faults_are_told_together(good: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path / "data")
    for spoil in (remove_mask, truncate, dicom_suffix, other_size):
        spoil(tmp_path / "data")
    message = refused(tmp_path, "--launcher", "process")
    assert "4 faults" in message
    for name in ("image_003.png", "image_004.png", "scan.dcm", "image_005.png"):
        assert name in message


def test_more_than_ten_faults_are_counted(good: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path / "data")
    for path in (tmp_path / "data/train/targets").iterdir():
        path.unlink()
    message = refused(tmp_path, "--launcher", "process")
    assert message.count("has no mask") == 10 - 1 or "and" in message
    assert "17 faults" in message and "and 7 more" in message


BAD_LAYERS = [
    ('{"network": "unet", }', ["is not JSON", "line 1"]),
    ('{"network": "unet", "width": 4, "width": 8}', ["'width' stands twice"]),
    ('{"network": "unet", "widht": 4}', ["did you mean 'width'"]),
    ('{"network": "smp.Unett", "encoder": "resnet18"}', ["did you mean 'smp.Unet'"]),
    ('{"class_name": "Functional", "config": {}}', ["layers: found nothing"]),
    ("[1, 2]", ["layer 1: found 1"]),
]


@pytest.mark.parametrize(("text", "told"), BAD_LAYERS, ids=lambda v: str(v)[:30])
def test_layers_file(text: str, told: list[str], good: Path, tmp_path: Path) -> None:
    (tmp_path / "net.json").write_text(text)
    message = refused(
        tmp_path, "--data", str(good), "--layers", "net.json", "--launcher", "process"
    )
    for part in told:
        assert part in " ".join(message.split())


def test_unknown_encoder_is_found_before_a_study_exists(good: Path, tmp_path: Path) -> None:
    network = {"network": "smp.Unet", "encoder": "resnet51", "activation": "sigmoid"}
    (tmp_path / "net.json").write_text(json.dumps(network))
    options = ("--data", str(good), "--layers", "net.json", "--image-size", "64")
    message = refused(tmp_path, *options, "--launcher", "process")
    assert "unknown encoder 'resnet51'" in message and "resnet50" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_right(good: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path / "data")
    (tmp_path / "data/train/inputs/image_001.png").chmod(0)
    assert "may not be read" in refused(tmp_path, "--launcher", "process")


def test_docker_without_engine(good: Path, tmp_path: Path) -> None:
    environment = {"DOCKER_HOST": f"unix://{tmp_path}/none.sock"}
    options = ("--data", str(good), "--launcher", "docker")
    ended = studies.driver(tmp_path, *options, environment=environment)
    assert ended.returncode == 2
    assert "engine" in ended.stderr and "--launcher process" in ended.stderr


def test_too_little_disk(good: Path, tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("no right to mount a small disk")
    try:
        ended = studies.driver(tmp_path, "--data", str(good), "--launcher", "process")
        assert ended.returncode == 2
        assert "are free, the study needs about" in ended.stderr
        assert not (tmp_path / "runs").exists()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_python_without_the_packages_names_one_that_has_them(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-I", "-S", str(ROOT / "rml_optimization.py"), "--help"],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    assert "has no typer" in ended.stderr and len(ended.stderr.strip().splitlines()) == 1
