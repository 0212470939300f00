"""Made-up volumes in the layouts of published data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from trainer.data.volumes.scans import list_scans, read_label, read_scan
from trainer.prepare.__main__ import main
from trainer.prepare.phantom_volumes import draw_brain, draw_ct
from trainer.prepare.phantoms import KINDS
from trainer.prepare.volume_commands import PHANTOMS


@pytest.mark.parametrize("kind", PHANTOMS)
def test_the_seed_gives_the_same_files_and_each_case_is_another(kind: str, tmp_path: Path) -> None:
    def made(name: str, *options: str) -> dict[str, bytes]:
        folder = tmp_path / name
        given = ["phantoms", kind, str(folder), "--cases", "2", "--size", "16", *options]
        assert main(given) == 0
        files = sorted(one for one in folder.rglob("*") if one.suffix != ".gz" and one.is_file())
        voxels = [np.asarray(nibabel.load(one).dataobj).tobytes() for one in folder.rglob("*.gz")]
        return {str(one.relative_to(folder)): one.read_bytes() for one in files} | {
            f"voxels {number}": one for number, one in enumerate(sorted(voxels))
        }

    first, again, other = made("a"), made("b"), made("c", "--seed", "1")
    assert first == again and first.keys() == other.keys() and first != other
    volumes = [one for name, one in first.items() if not name.endswith(".json")]
    assert len(set(volumes)) == len(volumes)


def test_every_kind_has_a_description() -> None:
    assert [*PHANTOMS] == [*KINDS]


def test_organs_and_lesions_differ_in_hounsfield_units() -> None:
    for organs in (1, 2):
        image, label = draw_ct(np.random.default_rng(0), (40, 40, 32), organs)
        assert image.dtype == np.float32 and label.dtype == np.uint8
        means = [image[label == number].mean() for number in range(3)]
        assert means[1] > means[2] + 30 > means[0] and image.min() < -900
        assert (label == 1).sum() > 1000 and (label == 2).sum() > 20


def test_tissues_of_a_brain_differ_in_each_channel() -> None:
    image, label = draw_brain(np.random.default_rng(0), (40, 40, 32))
    assert image.shape == (4, 40, 40, 32) and image.min() == 0
    assert (image[:, 0, 0, 0] == 0).all()
    flair, gadolinium = image[0], image[2]
    brain = (label == 0) & (flair > 0)
    assert flair[label == 1].mean() > 1.3 * flair[brain].mean(), "edema is bright in FLAIR"
    assert gadolinium[label == 3].mean() > 1.3 * gadolinium[label == 2].mean()
    assert all((label == number).sum() > 20 for number in (1, 2, 3))


def test_layouts_are_those_of_the_published_sets(tmp_path: Path) -> None:
    for kind in KINDS:
        given = ["phantoms", kind, str(tmp_path / kind), "--cases", "2", "--size", "20"]
        assert main(given) == 0
    content = json.loads((tmp_path / "msd/dataset.json").read_text())
    assert content["training"][1]["image"] == "./imagesTr/PHANTOM_001.nii.gz"
    image: Any = nibabel.load(tmp_path / "msd/imagesTr/PHANTOM_001.nii.gz")
    assert image.ndim == 4 and image.shape[3] == 4
    assert len(list_scans(tmp_path / "nnunet/imagesTr", 4)) == 2
    kits = [tmp_path / "kits19/case_00001" / f"{n}.nii.gz" for n in ("imaging", "segmentation")]
    scan, (label, grid) = read_scan(kits[0]), read_label(kits[1])
    assert scan.grid.orientation == "IPL" and grid.same_as(scan.grid)
    assert scan.array[0][label == 1].mean() > 120
    assert {one.name for one in (tmp_path / "lits").iterdir()} == {
        *("volume-0.nii", "volume-1.nii", "segmentation-0.nii", "segmentation-1.nii")
    }
    brain = tmp_path / "brats/HGG/Brats17_PHANTOM_001_1"
    assert {one.name.removeprefix(brain.name) for one in brain.iterdir()} == {
        *("_t1.nii.gz", "_t2.nii.gz", "_flair.nii.gz", "_t1ce.nii.gz", "_seg.nii.gz")
    }
    values, _ = read_label(brain / f"{brain.name}_seg.nii.gz")
    assert set(np.unique(values)) == {0, 1, 2, 4}
    series = read_scan(tmp_path / "dicom/patient_001/ct")
    label, grid = read_label(tmp_path / "dicom/patient_001/ct/label.nii.gz")
    assert series.grid.orientation == "LPS" and grid.same_as(series.grid)
    assert series.array[0][label == 1].mean() > 120 > series.array[0][label == 2].mean()


def test_wrong_options_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, told in {
        ("--size", "3"): "--size: is 3; accepted: 16 or more",
        ("--cases", "0"): "--cases: is 0",
        ("--seed", "-1"): "--seed: is -1",
    }.items():
        assert main(["phantoms", "msd", str(tmp_path / "new"), *options]) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
