"""LiTS as TensorFlow's 3D U-Net reads it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from trainer.config import load_config
from trainer.data.volumes.scans import read_label, read_scan
from trainer.data.volumes.volume_file import open_volumes
from trainer.prepare.__main__ import main
from trainer.prepare.lits import (
    Choices,
    brightness,
    crop_starts,
    cube,
    liver_centre,
    preparation_for,
    sources,
)
from trainer.prepare.phantoms import make_phantoms

SMALL = ("--size", "16", "--resize", "24")


@pytest.fixture(scope="session")
def livers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms in the layout of LiTS; not to be changed."""
    folder = tmp_path_factory.mktemp("lits") / "data"
    make_phantoms("lits", folder, cases=4, size=20, seed=3)
    return folder


def test_the_centre_is_that_of_the_box_of_the_liver() -> None:
    label = np.zeros((20, 20, 20), np.uint8)
    label[3:8, 5:7, 2:19] = 1
    label[15, 15, 0] = 2  # a lesion elsewhere
    assert liver_centre(label) == ((3 + 7) // 2, (5 + 6) // 2, (2 + 18) // 2)


def test_54_crops_lie_around_the_liver_and_inside_the_cube() -> None:
    """Sigma 128 // 6 = 21, at most 32 voxels from the centre; middles from 64 to 128."""
    label = np.zeros((192,) * 3, np.uint8)
    label[91:102, 91:102, 91:102] = 1  # in the middle, at 96
    starts = [
        np.array(crop_starts(np.random.default_rng(seed), label, Choices())) for seed in range(100)
    ]
    assert all(len(one) == 54 for one in starts)
    middles = np.concatenate(starts) + 64
    assert middles.min() == 64 and middles.max() == 128
    # A normal distribution of sigma 21, cut at 32 and rounded towards 0.
    drawn = np.random.default_rng(0).normal(0, 21, 200_000)
    assert (middles - 96).std() == pytest.approx(
        np.clip(drawn, -32, 32).astype(int).std(), rel=0.03
    )
    label[:] = 0
    label[:5, 60:70, 180:] = 1
    middles = np.array(crop_starts(np.random.default_rng(0), label, Choices())) + 64
    assert (middles[:, 0] == 64).all() and (middles[:, 2] == 128).all()
    assert (middles >= 64).all() and (middles <= 128).all()


def test_crops_of_the_whole_volume() -> None:
    label, rng = np.zeros((1, 1, 1), np.uint8), np.random.default_rng(0)
    assert crop_starts(rng, label, Choices(around_liver=False)) == [(32, 32, 32)]
    spread = crop_starts(rng, label, Choices(around_liver=False, augment=True))
    assert len(spread) == 54 and set(spread) == {
        (a, b, c) for a in (0, 32, 64) for b in (0, 32, 64) for c in (0, 32, 64)
    }


def test_brightness_is_changed_nine_times_in_ten() -> None:
    rng = np.random.default_rng(0)
    factors = np.array([brightness(rng) for _ in range(20_000)])
    assert (factors == 1).mean() == pytest.approx(0.1, abs=0.01)
    assert factors.min() == 0.9 and factors.max() == 1.1
    assert 0.035 < factors[factors != 1].std() < 0.05


def test_a_cube_is_a_cubic_spline_of_the_volume(livers: Path) -> None:
    source = sources(livers).cases[1]
    scan = read_scan(source.images[0])
    choices = Choices(size=16, resize=24)
    image, label, grid = cube(source, preparation_for(choices, scan.grid.orientation))
    factors = [24 / side for side in scan.grid.shape]
    np.testing.assert_allclose(image, ndimage.zoom(scan.array[0], factors, order=3), rtol=1e-5)
    assert label.shape == grid.shape == (24, 24, 24) and set(np.unique(label)) <= {0, 1, 2}
    # The outermost voxels are those of the volume, in both.
    values, _ = read_label(source.label or Path())
    np.testing.assert_array_equal(
        label[::23, ::23, ::23],
        values[:: values.shape[0] - 1, :: values.shape[1] - 1, :: values.shape[2] - 1],
    )
    windowed = preparation_for(choices._replace(window=(-100, 400)), scan.grid.orientation)
    there, _, _ = cube(source, windowed)
    np.testing.assert_allclose(there, (np.clip(image, -100, 400) + 100) / 500, atol=1e-5)
    assert there.min() == 0 and there.max() <= 1


def test_crops_are_cases_and_volumes_are_split(
    livers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "data"
    assert main(["lits", str(livers), str(target), *SMALL, "--npy", "--one-hot"]) == 0
    assert "Wrote 162 train, 54 validation crops" in capsys.readouterr().out
    parts = [open_volumes(target / f"{part}.h5").cases for part in ("train", "validation")]
    patients = [{case.patient for case in cases} for cases in parts]
    assert len(patients[0]) == 3 and not patients[0] & patients[1]
    case = parts[1][7]
    number, index = case.name.removeprefix("volume-").split("-")
    path = target / f"validation/instance-{number}-{int(index)}"
    np.testing.assert_array_equal(np.load(f"{path}-im.npy"), case.image()[0])
    one_hot = np.load(f"{path}-label.npy")
    assert one_hot.shape == (16, 16, 16, 3) and (one_hot.sum(-1) == 1).all()
    np.testing.assert_array_equal(one_hot.argmax(-1), case.label())
    assert len(list((target / "train").glob("*-im.npy"))) == 162
    # Where the grid says that a crop lies, there it was taken from.
    scan = read_scan(Path(case.source))
    steps = np.linalg.inv(scan.grid.affine) @ case.grid.affine
    start = steps @ [*(np.array(case.grid.shape) // 2), 1]
    near = tuple(np.rint(start[:3]).astype(int))
    inside = ndimage.map_coordinates(scan.array[0], start[:3, None], order=3)[0]
    assert case.image()[0, 8, 8, 8] == pytest.approx(inside, abs=2), near
    load_config(target / "config.json")


def test_a_window_makes_values_from_0_to_1(livers: Path, tmp_path: Path) -> None:
    target = tmp_path / "data"
    assert main(["lits", str(livers), str(target), *SMALL, "--window", "-100,400"]) == 0
    volumes = open_volumes(target / "train.h5")
    images = [case.image() for case in volumes.cases]
    assert min(one.min() for one in images) == 0 and 0.6 < max(one.max() for one in images) <= 1
    assert volumes.header.preparation.clip == (-100, 400)


def test_shards_together_are_the_whole(livers: Path, tmp_path: Path) -> None:
    assert main(["lits", str(livers), str(tmp_path / "whole"), *SMALL]) == 0
    sharded = [str(livers), str(tmp_path / "shards"), *SMALL, "--shard-stride", "2"]
    for start in ("1", "0"):
        assert main(["lits", *sharded, "--shard-start", start]) == 0
    for part in ("train", "validation"):
        whole = open_volumes(tmp_path / f"whole/{part}.h5").cases
        parts = open_volumes(tmp_path / "shards" / part).cases
        assert [case.name for case in whole] == [case.name for case in parts]
        for one, other in zip(whole[::9], parts[::9], strict=True):
            np.testing.assert_array_equal(one.image(), other.image())
            np.testing.assert_array_equal(one.label(), other.label())


def test_a_missing_number_does_not_end_it_and_numpy_is_read(livers: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number, new in ((0, 2), (1, 3), (2, 7), (3, 11)):
        for which in ("volume", "segmentation"):
            image: Any = nibabel.load(livers / f"{which}-{number}.nii")
            np.save(source / f"{which}-{new}.npy", image.get_fdata(dtype=np.float32))
    assert main(["lits", str(source), str(tmp_path / "data"), *SMALL]) == 0
    cases = [
        case
        for part in ("train", "validation")
        for case in open_volumes(tmp_path / f"data/{part}.h5").cases
    ]
    assert {case.patient for case in cases} == {f"volume-{n}" for n in (2, 3, 7, 11)}


def test_faults_are_told(livers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(source: Path, *options: str) -> str:
        assert main(["lits", str(source), str(tmp_path / "new"), *options]) == 2
        assert not (tmp_path / "new").exists() or not any((tmp_path / "new").iterdir())
        return capsys.readouterr().err

    assert "--size 200 of --resize 192" in told(livers, "--size", "200")
    assert "--window: is 5,1" in told(livers, "--window", "5,1")
    assert "--window: is 'x'" in told(livers, "--window", "x")
    assert "--shard-start: is 2 of 2" in told(livers, "--shard-start", "2", "--shard-stride", "2")
    assert "add --npy" in told(livers, "--one-hot")
    assert "has no volumes" in told(tmp_path)
    source = Path(shutil.copytree(livers, tmp_path / "source"))
    (source / "segmentation-1.nii").unlink()
    image: Any = nibabel.load(source / "segmentation-2.nii")
    empty = nibabel.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine)
    nibabel.save(empty, source / "segmentation-2.nii")
    text = told(source, *SMALL)
    assert "volume-1.nii: has no segmentation-1 beside it" in text
    assert "segmentation-2.nii: has no voxel of the liver (1)" in text
    assert main(["lits", str(source), str(tmp_path / "new"), *SMALL, "--skip-bad"]) == 0
    assert "Left out: volume-2" in capsys.readouterr().out
