"""BraTS as slices for a 2D U-Net."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from trainer.config import Slices
from trainer.data.slice_files import list_slices
from trainer.errors import InputError
from trainer.prepare.__main__ import main
from trainer.prepare.brats_slices import (
    Brain,
    Choices,
    find_brains,
    find_scans,
    split_rows,
    turned_slices,
)
from trainer.prepare.phantoms import make_phantoms

FILES = [f"{kind}_{part}.npy" for kind in ("imgs", "msks") for part in ("train", "test")]


@pytest.fixture(scope="session")
def brains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms in the layout of BraTS, 40 x 40 x 26 voxels; not to be changed."""
    folder = tmp_path_factory.mktemp("brats") / "data"
    make_phantoms("brats", folder, cases=4, size=40, seed=3)
    return folder


def brain(folder: Path, name: str, volumes: dict[str, Any]) -> None:
    (folder / name).mkdir(parents=True)
    for which, volume in volumes.items():
        image = nibabel.Nifti1Image(volume, np.diag([-1.0, -1, 1, 1]))
        nibabel.save(image, folder / name / f"{name}_{which}.nii.gz")


def arrays(folder: Path) -> dict[str, np.ndarray]:
    return {name: np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in FILES}


def test_a_marked_voxel_lands_where_it_is_published(tmp_path: Path) -> None:
    """240 x 240 x 155: rows and columns 56 to 183, then 270 degrees counter-clockwise, so row r and
    column c of the crop become row c and column 127 - r."""
    volumes = {}
    for number, which in enumerate(("t1", "t2", "flair", "t1ce")):
        volume = np.zeros((240, 240, 155), np.int16)
        volume[56 + 10, 56 + 30 + number, 7] = 1000
        volumes[which] = volume
    seg = np.zeros((240, 240, 155), np.uint8)
    seg[56 + 20, 56 + 1, 9], seg[56 + 20, 56 + 2, 9], seg[56 + 20, 56 + 3, 9] = 1, 2, 4
    brain(tmp_path / "HGG", "Brats17_TCIA_296_1", {**volumes, "seg": seg})
    target = tmp_path / "data"
    ids = ("--ids", "Brats17_TCIA_296_1", "--dtype", "float64")
    assert main(["brats-slices", str(tmp_path / "HGG"), str(target), *ids]) == 0
    made = arrays(target / "Brats17_TCIA_296_1")
    assert made["imgs_train.npy"].shape == (124, 128, 128, 4), "0.8 of 155"
    assert made["imgs_test.npy"].shape == (31, 128, 128, 4)
    assert made["imgs_train.npy"].dtype == np.float64 and made["msks_train.npy"].dtype == np.uint8
    for channel in range(4):
        found = np.argwhere(made["imgs_train.npy"][..., channel] > 1)
        assert found.tolist() == [[7, 30 + channel, 127 - 10]]
    found = np.argwhere(made["msks_train.npy"])
    assert found.tolist() == [[9, 1, 107, 1], [9, 2, 107, 2], [9, 3, 107, 3]]
    both = np.concatenate([made["imgs_train.npy"], made["imgs_test.npy"]])
    assert abs(both.mean()) < 1e-5 and both.std() == pytest.approx(1)
    size = (target / "Brats17_TCIA_296_1/imgs_test.npy").stat().st_size
    assert size - 128 == 31 * 128 * 128 * 4 * 8


def test_slices_are_turned_by_270_degrees() -> None:
    volume = np.arange(4 * 6 * 2).reshape(4, 6, 2)
    made = turned_slices(volume, 2)
    assert made.shape == (2, 2, 2)
    middle = volume[1:3, 2:4]
    np.testing.assert_array_equal(made[1], np.rot90(middle[..., 1], 3))
    assert made[1, 0, 1] == middle[0, 0, 1], "the first voxel comes to the right"


def test_files_of_a_whole_set(
    brains: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "data"
    assert main(["brats-slices", str(brains), str(target), "--size", "32"]) == 0
    assert "Wrote 78 train, 26 test slices" in capsys.readouterr().out
    assert {one.name for one in target.iterdir()} == {*FILES, "slices.json"}
    made = arrays(target)
    assert made["imgs_train.npy"].shape == made["msks_train.npy"].shape == (78, 32, 32, 4)
    assert made["imgs_train.npy"].dtype == np.float32
    record = json.loads((target / "slices.json").read_text())
    parts = {part: {one["patient"] for one in rows} for part, rows in record["parts"].items()}
    assert len(parts["train"]) == 3 and not parts["train"] & parts["test"]
    for number, one in enumerate(record["parts"]["train"]):
        rows = slice(26 * number, 26 * (number + 1))
        image, masks = made["imgs_train.npy"][rows], made["msks_train.npy"][rows]
        assert image.mean() == pytest.approx(0, abs=1e-4)
        assert image.std() == pytest.approx(1, abs=1e-4)
        assert not masks[..., 0].any() and set(np.unique(masks)) == {0, 1}
        whole = masks.sum(-1)
        assert whole.max() == 1, "planes exclude each other"
        own = brains / "HGG" / one["scan"] / f"{one['scan']}_seg.nii.gz"
        seg: Any = nibabel.load(own)
        truth = turned_slices(np.asarray(seg.dataobj), 32)
        np.testing.assert_array_equal(whole, truth > 0)
        np.testing.assert_array_equal(masks[..., 3], truth == 4)
        flair: Any = nibabel.load(own.with_name(f"{one['scan']}_flair.nii.gz"))
        flat = turned_slices(np.asarray(flair.dataobj, float), 32)
        assert np.corrcoef(flat.ravel(), image[..., 2].ravel())[0, 1] > 0.9999


def test_training_reads_them(brains: Path, tmp_path: Path) -> None:
    target = tmp_path / "data"
    assert main(["brats-slices", str(brains), str(target), "--size", "32"]) == 0
    files = [str(target / name) for name in ("imgs_train.npy", "msks_train.npy")]
    found = list_slices(*files, Slices(channels=["flair"], target=["wt"]))
    assert len(found) == 78 and found[0].files.channels == (2,)
    assert found[0].files.planes == (1, 2, 3)


def test_the_split_by_slice_is_the_published_one(brains: Path, tmp_path: Path) -> None:
    """25 scans of 155 slices at a time: 3293 and 582; 285 scans: 37,540 and 6,635."""
    for scans, train, test in ((25, 3293, 582), (285, 37_540, 6_635)):
        every = [Brain(f"b{n}", (), Path()) for n in range(scans)]
        parts = split_rows(every, [155] * scans, Choices(split_by="slice"))
        counts = [sum(one.last - one.first for one in parts[part]) for part in ("train", "test")]
        assert counts == [train, test]
    target = tmp_path / "data"
    options = ("--size", "32", "--split-by", "slice")
    assert main(["brats-slices", str(brains), str(target), *options]) == 0
    assert len(arrays(target)["imgs_train.npy"]) == int(0.85 * 104)


def test_all_scans_of_a_patient_go_to_one_part() -> None:
    every = [Brain(f"Brats17_TCIA_{n // 2}_{n % 2 + 1}", (), Path()) for n in range(40)]
    parts = split_rows(every, [155] * 40, Choices(seed=4))
    patients = [{one.brain.patient for one in parts[part]} for part in ("train", "test")]
    assert [len(one) for one in patients] == [17, 3] and not patients[0] & patients[1]


@pytest.mark.parametrize(
    ("scan", "patient"),
    [
        ("Brats17_TCIA_296_1", "Brats17_TCIA_296"),
        ("Brats17_2013_10_1", "Brats17_2013_10"),
        ("Brats18_TCIA01_131_1", "Brats18_TCIA01_131"),
        ("BraTS19_CBICA_AAB_1", "BraTS19_CBICA_AAB"),
        ("BraTS20_Training_001", "BraTS20_Training_001"),
        ("BraTS2021_00000", "BraTS2021_00000"),
        ("case_1", "case_1"),
    ],
)
def test_the_patient_of_a_scan(scan: str, patient: str) -> None:
    assert Brain(scan, (), Path()).patient == patient


def test_a_scan_is_found_once_through_links_and_in_two_formats(tmp_path: Path) -> None:
    own = tmp_path / "real" / "A"
    own.mkdir(parents=True)
    for which in ("t1", "t2", "flair", "t1ce", "seg"):
        (own / f"A_{which}.nii.gz").touch()
    (own / "A_t1.nii").touch()
    (tmp_path / "links").mkdir()
    (tmp_path / "links/A").symlink_to(own)
    assert list(find_scans(tmp_path / "links")[0]) == ["A"]
    assert [brain.images[0].name for brain in find_brains(tmp_path)[0]] == ["A_t1.nii.gz"]
    bare = tmp_path / "B"
    bare.mkdir()
    for which in ("t2", "flair", "t1ce", "seg"):
        (bare / f"B_{which}.nii.gz").touch()
    assert find_scans(tmp_path)[1] == {"B": "has no t1"}
    assert find_brains(tmp_path)[1] == ["Passed over: B has no t1."]
    shutil.copytree(own, tmp_path / "again" / "A")
    for find in (find_scans, find_brains):
        with pytest.raises(InputError, match="has two scans of the name A"):
            find(tmp_path)


def test_scans_that_lack_a_file_are_passed_over_and_told(
    brains: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(shutil.copytree(brains, tmp_path / "source"))
    names = sorted(one.name for one in (source / "HGG").iterdir())
    (source / "HGG" / names[0] / f"{names[0]}_seg.nii.gz").unlink()
    (source / "HGG" / names[2] / f"{names[2]}_t1ce.nii.gz").unlink()
    found, notes = find_brains(source)
    assert [one.name for one in found] == [names[1], names[3]]
    assert notes == [
        f"Passed over: {names[0]} has no seg.",
        f"Passed over: {names[2]} has no t1ce.",
    ]
    options = ("--size", "32", "--train-share", "0.5")
    assert main(["brats-slices", str(source), str(tmp_path / "data"), *options]) == 0
    assert f"Passed over: {names[0]} has no seg." in capsys.readouterr().out
    made = arrays(tmp_path / "data")
    assert {len(one) for one in made.values()} == {26}, "masks are not shifted"


def test_faults_are_told(brains: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(source: Path, *options: str) -> str:
        assert main(["brats-slices", str(source), str(tmp_path / "new"), *options]) == 2
        assert not (tmp_path / "new").exists() or not any((tmp_path / "new").iterdir())
        return capsys.readouterr().err

    assert "has slices of 40x40" in told(brains)
    assert "has no scan Brats17_X" in told(brains, "--ids", "Brats17_X")
    assert "--train-share: is 1" in told(brains, "--train-share", "1")
    assert "has no scans of BraTS" in told(tmp_path)
    source = Path(shutil.copytree(brains, tmp_path / "source"))
    names = sorted(one.name for one in (source / "HGG").iterdir())
    for name, value in ((names[1], 9), (names[3], 3)):
        path = source / "HGG" / name / f"{name}_seg.nii.gz"
        image: Any = nibabel.load(path)
        seg = np.asarray(image.dataobj).copy()
        seg[0, 0, 0] = value
        path.unlink()
        nibabel.save(nibabel.Nifti1Image(seg, image.affine), path)
    text = told(source, "--size", "32")
    assert f"{names[1]}, " in text and "has the values [9]" in text and "[3]" in text
    given = ["brats-slices", str(source), str(tmp_path / "new"), "--size", "32", "--skip-bad"]
    assert main([*given, "--train-share", "0.5"]) == 0
    assert f"Left out: {names[1]}" in capsys.readouterr().out


@pytest.mark.parametrize("size", [32, 40])
def test_single_brains_have_a_folder_each(brains: Path, tmp_path: Path, size: int) -> None:
    names = [f"Brats17_PHANTOM_{n:03d}_1" for n in (2, 0)]
    given = ["brats-slices", str(brains), str(tmp_path / "data"), "--size", str(size), "--ids"]
    assert main([*given, ",".join(names)]) == 0
    for name in names:
        made = arrays(tmp_path / "data" / name)
        assert made["imgs_train.npy"].shape == (20, size, size, 4)
        assert made["msks_test.npy"].shape == (6, size, size, 4)
