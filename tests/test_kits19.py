"""KiTS19 as MLPerf's U-Net3D reads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from trainer.data.volumes.volume_file import open_volumes
from trainer.errors import InputError
from trainer.prepare.__main__ import main
from trainer.prepare.kits19 import VALIDATION, published_arrays, sources, verify
from trainer.prepare.phantoms import make_phantoms


@pytest.fixture(scope="session")
def kidneys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms in the layout of KiTS19; not to be changed."""
    folder = tmp_path_factory.mktemp("kits") / "data"
    make_phantoms("kits19", folder, cases=4, size=20, seed=3)
    return folder


def scan(folder: Path, number: int, image: Any, label: Any, spacing: Any) -> None:
    own = folder / f"case_{number:05d}"
    own.mkdir(parents=True)
    affine = np.diag([*spacing, 1.0])
    nibabel.save(nibabel.Nifti1Image(image, affine), own / "imaging.nii.gz")
    nibabel.save(nibabel.Nifti1Image(label, affine), own / "segmentation.nii.gz")


def test_the_split_is_the_published_one(tmp_path: Path) -> None:
    for number in (*range(210), 210, 299):
        (tmp_path / f"case_{number:05d}").mkdir()
    (tmp_path / "notes").mkdir()
    found = sources(tmp_path)
    assert not found.cases and len(found.faults) == 210, "files are missing, cases are known"
    for number in range(210):
        for name in ("imaging", "segmentation"):
            (tmp_path / f"case_{number:05d}/{name}.nii.gz").touch()
    parts = {case.name: case.part for case in sources(tmp_path).cases}
    assert [*parts.values()].count("train") == 168
    held = sorted(name for name, part in parts.items() if part == "validation")
    assert held == [f"case_{one}" for one in VALIDATION] and len(set(VALIDATION)) == 42


def test_a_case_of_twice_the_spacing_doubles_its_size(tmp_path: Path) -> None:
    """3.2 x 2.4 x 2.4 mm to 1.6 x 1.2 x 1.2 mm; values from -79 to 304 HU; at least 128 a side."""
    rng = np.random.default_rng(0)
    image = rng.normal(0, 900, (70, 40, 50)).astype(np.int16)
    label = rng.integers(0, 3, image.shape).astype(np.uint8)
    scan(tmp_path, 0, image, label, (3.2, 2.4, 2.4))
    arrays = published_arrays(sources(tmp_path).cases[0])
    assert arrays.image.shape == arrays.label.shape == (1, 140, 128, 128)
    assert (arrays.image.dtype, arrays.label.dtype) == (np.float32, np.uint8)
    assert arrays.image.min() == pytest.approx(-2.34070, abs=1e-5)
    assert arrays.image.max() == pytest.approx(2.63979, abs=1e-5)
    # 80 and 100 rows in 128: 24 and 14 before, with the outermost values.
    assert (arrays.image[:, :, :24] == arrays.image[:, :, 24:25]).all()
    assert (arrays.label[..., 114:] == arrays.label[..., 113:114]).all()
    inner = arrays.label[0, :, 24:104, 14:114]
    np.testing.assert_array_equal(inner, label.repeat(2, 0).repeat(2, 1).repeat(2, 2))
    corner = np.clip(float(image[0, 0, 0]), -79, 304)
    assert arrays.image[0, 0, 24, 14] == pytest.approx((corner - 101) / 76.9, abs=1e-5)


def test_sizes_are_rounded_down(tmp_path: Path) -> None:
    image = np.zeros((130, 150, 150), np.float32)
    scan(tmp_path, 0, image, image.astype(np.uint8), (3.0, 0.9, 1.2))
    arrays = published_arrays(sources(tmp_path).cases[0])
    assert arrays.image.shape == (1, 243, 128, 150), "floor(243.75), 112.5 padded, as it was"


def test_files_are_as_published_and_repeatable(
    kidneys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "a"
    assert main(["kits19", str(kidneys), str(target), "--npy"]) == 0
    told = capsys.readouterr().out
    assert "Wrote 2 train, 2 validation cases" in told and "D 128, H 128, W 128" in told
    names = [f"case_{n:05d}_{which}.npy" for n in range(4) for which in "xy"]
    sums = json.loads((target / "npy/checksum.json").read_text())
    assert sorted(sums) == names
    assert main(["kits19", "-", str(target), "--mode", "verify"]) == 0
    again = ("--npy", "--checksums", str(target / "npy/checksum.json"))
    assert main(["kits19", str(kidneys), str(tmp_path / "b"), *again]) == 0
    volumes = open_volumes(target / "validation.h5")
    assert [case.name for case in volumes.cases] == ["case_00000", "case_00003"]
    assert volumes.header.classes == ["background", "kidney", "tumour"]
    for case in volumes.cases:
        published = np.load(target / f"npy/{case.name}_x.npy")
        np.testing.assert_allclose(case.image(), published, atol=1e-4)
        labels = np.load(target / f"npy/{case.name}_y.npy")[0]
        same = (case.label() == labels).mean()
        assert same > 0.97, "apart from the shift of the published labels"


def test_a_wrong_byte_and_a_missing_file_are_told(kidneys: Path, tmp_path: Path) -> None:
    target = tmp_path / "data"
    assert main(["kits19", str(kidneys), str(target), "--npy", "--jobs", "2"]) == 0
    folder, expected = target / "npy", tmp_path / "sums.json"
    shutil.copy(folder / "checksum.json", expected)
    assert verify(folder, expected) == 8
    path = folder / "case_00001_y.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"case_00001_y.npy: has the MD5"):
        verify(folder, expected)
    path.unlink()
    with pytest.raises(InputError, match=r"case_00001_y.npy: is missing"):
        verify(folder, expected)
    np.save(path.with_name("more.npy"), 1)
    with pytest.raises(InputError, match=r"more.npy: does not stand in"):
        verify(folder, expected)
    with pytest.raises(InputError, match=r"none.json: there is no such file"):
        verify(folder, tmp_path / "none.json")
    again = tmp_path / "again"
    given = ["kits19", str(kidneys), str(again), "--npy", "--checksums"]
    expected.write_text(json.dumps({"case_00000_x.npy": "0"}))
    assert main([*given, str(expected)]) == 2
    assert not again.exists() or not any(again.iterdir()), "nothing is left of a wrong set"


def test_another_split_and_wrong_folders(
    kidneys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["kits19", str(kidneys), str(tmp_path / "data"), "--split", "0.5,0.25,0.25"]
    assert main(given) == 0
    assert "Wrote 2 train, 1 validation, 1 test" in capsys.readouterr().out
    assert main(["kits19", str(tmp_path), str(tmp_path / "new")]) == 2
    assert "has no cases" in capsys.readouterr().err
    assert main(["kits19", str(kidneys), str(tmp_path / "new"), "--checksums", "x"]) == 2
    assert "add --npy" in capsys.readouterr().err
