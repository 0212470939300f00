"""Scans with labels, of any layout, into the files that training reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from tests import studies
from trainer.data.volumes.scans import read_label, read_scan
from trainer.data.volumes.volume_file import open_volumes
from trainer.errors import InputError
from trainer.prepare.__main__ import main
from trainer.prepare.phantoms import KINDS, make_phantoms
from trainer.prepare.split_shares import read_shares, split_by_patient
from trainer.prepare.volume_sources import msd, nnunet
from trainer.prepare.volumes import classes_for, in_turn, read_crop, read_labels

PUBLISHED = studies.ROOT.parent / "shared/data/hippocampus"
COUNT, SIZE = 8, 18


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with phantoms in every layout, by its name; not to be changed."""
    folder = tmp_path_factory.mktemp("phantoms")
    for kind in KINDS:
        make_phantoms(kind, folder / kind, COUNT, SIZE, seed=1)
    return folder


@pytest.fixture
def decathlon(made: Path, tmp_path: Path) -> Path:
    """A copy of the phantoms in the Decathlon's layout."""
    return Path(shutil.copytree(made / "msd", tmp_path / "source"))


Failed = Callable[..., str]


@pytest.fixture
def failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Failed:
    """failed("msd", source, *options): what a preparation that must fail says; nothing is left."""

    def run(kind: str, source: Path, *options: str) -> str:
        target = tmp_path / "refused"
        assert main([kind, str(source), str(target), *options]) == 2
        assert not target.exists() or not any(target.iterdir())
        return " ".join(capsys.readouterr().err.split())

    return run


def change(path: Path, edit: Callable[[Any], Any], affine: Any = None) -> None:
    """Writes a NIfTI file again with its voxels edited, and another affine where given."""
    image: Any = nibabel.load(path)
    array = edit(np.asarray(image.dataobj).copy())
    affine = image.affine if affine is None else affine
    path.unlink()
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


# ------------------------------------------------------------------------------------- whole runs


@pytest.mark.parametrize(
    ("kind", "options", "parts"),
    [
        ("msd", (), (5, 1, 2)),
        ("nnunet", (), (6, 2, 0)),
        ("nnunet", ("--fold", "4"), (7, 1, 0)),
        ("pairs", ("--modality", "CT", "--labels", "liver=1,2;lesion=2"), (5, 1, 2)),
        ("dicom", ("--spacing", "none"), (5, 1, 2)),
    ],
)
def test_every_layout_becomes_files_of_prepared_cases(
    made: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    options: tuple[str, ...],
    parts: tuple[int, ...],
) -> None:
    target = tmp_path / "data"
    given = [kind, "--jobs", "2", *options, str(made / kind), str(target)]
    assert main(given) == 0
    assert f"Next: python rml_optimization.py --data {target}" in capsys.readouterr().out
    facts = json.loads((target / "fingerprint.json").read_text())
    files = [target / f"{part}.h5" for part in ("train", "validation", "test")]
    assert tuple(len(open_volumes(f).cases) if f.exists() else 0 for f in files) == parts
    assert {one.name for one in target.iterdir()} == {
        *(file.name for file, count in zip(files, parts, strict=True) if count),
        *("fingerprint.json", "config.json", "layers.json"),
    }
    volumes = open_volumes(files[0])
    assert facts["number_of_cases"] == sum(parts) and facts["kind"] == kind
    for case in volumes.cases:
        image, label = case.image(), case.label()
        assert image.shape[1:] == label.shape == case.grid.shape
        assert image.shape[0] == len(facts["channels"]) and np.isfinite(image).all()
        assert label.max() < len(volumes.header.classes) and label.any()
        assert case.original_label().shape == case.original.shape
        assert np.bincount(label.ravel(), minlength=len(case.voxels)).tolist() == [*case.voxels]


def test_a_prepared_case_is_the_preparation_of_its_files(made: Path, tmp_path: Path) -> None:
    target = tmp_path / "data"
    assert main(["msd", str(made / "msd"), str(target), "--spacing", "1.5,1,2"]) == 0
    volumes = open_volumes(target / "train.h5")
    preparation = volumes.header.preparation
    assert preparation.spacing_mm == (1.5, 1, 2) and preparation.orientation == "RAS"
    assert volumes.header.channels == ["FLAIR", "T1w", "t1gd", "T2w"]
    case = volumes.cases[0]
    scan = read_scan(Path(case.source))
    np.testing.assert_array_equal(case.image(), preparation.image(scan.array, scan.grid))
    assert case.image().mean() == pytest.approx(0, abs=1e-4)
    assert case.grid.spacing_mm == pytest.approx((1.5, 1, 2), rel=0.1)
    values, grid = read_label(made / "msd/labelsTr" / Path(case.source).name)
    np.testing.assert_array_equal(case.original_label(), values)
    np.testing.assert_array_equal(case.label(), preparation.label(values, grid))
    assert case.original.same_as(scan.grid)


def test_the_published_brain_recipe(made: Path, tmp_path: Path) -> None:
    """Decathlon task 1 as DistMIS has it: whole tumour, 2 slices less before and 1 after, z-score
    of each modality, cases in their order, no resampling."""
    target = tmp_path / "data"
    options = ("--crop", "0:0,0:0,2:1", "--labels", "whole tumour=1,2,3", "--spacing", "none")
    assert main(["msd", str(made / "msd"), str(target), *options, "--order", "file"]) == 0
    volumes = open_volumes(target / "train.h5")
    assert [case.name for case in volumes.cases] == [f"PHANTOM_{n:03d}" for n in range(5)]
    assert volumes.header.classes == ["background", "whole tumour"]
    image: Any = nibabel.load(made / "msd/imagesTr/PHANTOM_002.nii.gz")
    label: Any = nibabel.load(made / "msd/labelsTr/PHANTOM_002.nii.gz")
    x = np.moveaxis(np.asarray(image.dataobj, np.float64), 3, 0)[..., 2:-1]
    floor = 1 / np.sqrt(x[0].size)
    std = np.maximum(x.std((1, 2, 3), keepdims=True), floor)
    case = volumes.cases[2]
    np.testing.assert_allclose(
        case.image(), (x - x.mean((1, 2, 3), keepdims=True)) / std, atol=1e-4
    )
    np.testing.assert_array_equal(case.label(), np.asarray(label.dataobj)[..., 2:-1] > 0)


def test_reshape_gives_every_case_one_size(made: Path, tmp_path: Path) -> None:
    assert main(["msd", str(made / "msd"), str(tmp_path / "data"), "--reshape", "12,20,16"]) == 0
    for case in open_volumes(tmp_path / "data/train.h5").cases:
        assert case.image().shape == (4, 12, 20, 16)
        assert set(np.unique(case.label())) <= {0, 1, 2, 3}


def test_the_seed_draws_the_split_and_jobs_change_nothing(made: Path, tmp_path: Path) -> None:
    for name, *options in (("a", "--seed", "1"), ("b", "--seed", "1", "--jobs", "1"), ("c",)):
        assert main(["msd", str(made / "msd"), str(tmp_path / name), *options]) == 0
    parts = [[case.name for case in open_volumes(tmp_path / n / "train.h5").cases] for n in "abc"]
    assert parts[0] == parts[1] != parts[2]
    a, b = ((tmp_path / name / "train.h5").read_bytes() for name in "ab")
    assert a == b


def test_the_fingerprint_says_what_the_cases_are_like(made: Path, tmp_path: Path) -> None:
    target = tmp_path / "data"
    assert main(["pairs", str(made / "pairs"), str(target), "--modality", "CT"]) == 0
    facts = json.loads((target / "fingerprint.json").read_text())
    values, shapes, spacings = [], [], []
    for case in facts["cases"]:
        path = made / "pairs/images" / f"{case['name']}.nrrd"
        scan, (label, _) = read_scan(path), read_label(made / "pairs/labels" / path.name)
        own = scan.array[0][label > 0]
        assert case["shape"] == list(scan.grid.shape)
        assert case["spacing_mm"] == pytest.approx(scan.grid.spacing_mm, abs=1e-5)
        assert case["voxels"]["label 2"] == (label == 2).sum()
        assert case["intensities"][0]["median"] == pytest.approx(np.median(own))
        assert case["intensities"][0]["percentile_99_5"] == pytest.approx(np.percentile(own, 99.5))
        if case["part"] == "train":
            values.append(own)
            shapes.append(case["shape"])
            spacings.append(case["spacing_mm"])
    assert facts["median_shape"] == np.median(shapes, axis=0).tolist()
    assert facts["median_spacing_mm"] == pytest.approx(np.median(spacings, axis=0).tolist())
    together = np.concatenate(values)
    assert facts["intensities"][0]["mean"] == pytest.approx(together.mean(), rel=1e-5)
    assert facts["intensities"][0]["percentile_00_5"] == pytest.approx(
        np.percentile(together, 0.5), rel=1e-5
    )
    preparation = open_volumes(target / "train.h5").header.preparation
    assert preparation.clip == pytest.approx(np.percentile(together, (0.5, 99.5)), rel=1e-5)
    assert preparation.normalization == "constant"
    assert preparation.std == pytest.approx((together.std(),), rel=1e-5)


def test_scans_without_labels_go_to_a_file_of_their_own(decathlon: Path, tmp_path: Path) -> None:
    (decathlon / "imagesTs").mkdir()
    shutil.copy(decathlon / "imagesTr/PHANTOM_000.nii.gz", decathlon / "imagesTs/OTHER.nii.gz")
    content = json.loads((decathlon / "dataset.json").read_text())
    content["test"] = ["./imagesTs/OTHER.nii.gz", "./imagesTs/NOT_THERE.nii.gz"]
    (decathlon / "dataset.json").write_text(json.dumps(content))
    assert main(["msd", str(decathlon), str(tmp_path / "a"), "--with-test"]) == 0
    cases = open_volumes(tmp_path / "a/unlabelled.h5").cases
    assert [case.name for case in cases] == ["OTHER"] and not cases[0].has_label
    assert main(["msd", str(decathlon), str(tmp_path / "b")]) == 0
    assert not (tmp_path / "b/unlabelled.h5").exists()


def test_labelled_test_cases_of_nnunet_are_the_test_part(made: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(made / "nnunet", tmp_path / "source"))
    for folder in ("images", "labels"):
        (source / f"{folder}Ts").mkdir()
        for path in (source / f"{folder}Tr").glob("phantom_000*"):
            new = source / f"{folder}Ts" / path.name.replace("phantom_000", "held_out")
            path.rename(new)
    folds = [{"train": [f"phantom_00{n}" for n in range(1, 6)], "val": ["phantom_006"]}]
    (source / "splits_final.json").write_text(json.dumps(folds))
    assert main(["nnunet", str(source), str(tmp_path / "data"), "--with-test"]) == 0
    names = {
        part: [case.name for case in open_volumes(tmp_path / f"data/{part}.h5").cases]
        for part in ("validation", "test")
    }
    assert names == {"validation": ["phantom_006"], "test": ["held_out"]}
    assert not (tmp_path / "data/unlabelled.h5").exists()


def test_a_fault_that_shows_late_leaves_nothing(decathlon: Path, failed: Failed) -> None:
    (decathlon / "imagesTs").mkdir()
    (decathlon / "imagesTs/OTHER.nii.gz").write_bytes(b"broken")
    content = json.loads((decathlon / "dataset.json").read_text())
    content["test"] = ["./imagesTs/OTHER.nii.gz"]
    (decathlon / "dataset.json").write_text(json.dumps(content))
    assert "OTHER.nii.gz: cannot be read" in failed("msd", decathlon, "--with-test")


def test_labels_may_be_written_either_way(decathlon: Path) -> None:
    path = decathlon / "dataset.json"
    content = json.loads(path.read_text())
    content["labels"] = {name: int(value) for value, name in content["labels"].items()}
    content["test"] = 0
    before = msd(decathlon).labels
    path.write_text(json.dumps(content))
    assert msd(decathlon).labels == before and before["edema"] == (1,)


@pytest.mark.skipif(not PUBLISHED.exists(), reason="no shared data")
@pytest.mark.slow
def test_the_hippocampus_of_the_decathlon(tmp_path: Path) -> None:
    assert main(["msd", str(PUBLISHED), str(tmp_path / "data")]) == 0
    counts = [
        len(open_volumes(tmp_path / f"data/{part}.h5").cases)
        for part in ("train", "validation", "test")
    ]
    assert counts == [163, 35, 36]


# ----------------------------------------------------------------------------------------- faults


def test_all_faults_are_told_together_and_by_name(decathlon: Path, failed: Failed) -> None:
    def image(number: int) -> Path:
        return decathlon / f"imagesTr/PHANTOM_{number:03d}.nii.gz"

    def label(number: int) -> Path:
        return decathlon / f"labelsTr/PHANTOM_{number:03d}.nii.gz"

    def spot(value: Any) -> Callable[[Any], Any]:
        def edit(array: Any) -> Any:
            array = array.astype(type(value))
            array.flat[7] = value
            return array

        return edit

    moved = nibabel.load(label(0)).affine.copy()  # type: ignore[attr-defined]
    moved[0, 3] += 1
    change(label(0), lambda a: a, moved)
    change(label(1), lambda a: a[:-1])
    change(label(2), spot(np.uint8(9)))
    change(image(3), spot(np.float32(np.nan)))
    label(4).unlink()
    change(image(5), lambda a: a[..., :3])
    image(6).write_bytes(image(6).read_bytes()[:-300])
    shutil.copy(image(6), decathlon / "kept")
    told = failed("msd", decathlon)
    for name, fault in {
        "PHANTOM_000": "the label lies elsewhere than its scan (affines differ by up to 1)",
        "PHANTOM_001": "the label has",
        "PHANTOM_002": "has the value 9",
        "PHANTOM_003": "are not a number",
        "PHANTOM_004": "there is no such file",
        "PHANTOM_005": "has 3 channels",
        "PHANTOM_006": "cannot be read",
    }.items():
        own = told.partition(f"- {name}, ")[2].partition(" - PHANTOM")[0]
        assert fault in own, f"{name}: {told}"
    assert "7 cases have a fault" in told and "--skip-bad" in told


def test_bad_cases_are_left_out_on_request(
    decathlon: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (decathlon / "labelsTr/PHANTOM_004.nii.gz").unlink()
    assert main(["msd", str(decathlon), str(tmp_path / "data"), "--skip-bad"]) == 0
    assert "Left out: PHANTOM_004, " in capsys.readouterr().out
    facts = json.loads((tmp_path / "data/fingerprint.json").read_text())
    assert len(facts["cases"]) == 7 and "PHANTOM_004" not in str(facts["cases"])


def test_the_same_scan_twice_is_told(decathlon: Path, failed: Failed) -> None:
    for folder in ("imagesTr", "labelsTr"):
        own = decathlon / folder
        shutil.copy(own / "PHANTOM_001.nii.gz", own / "PHANTOM_005.nii.gz")
    assert "PHANTOM_005.nii.gz: is the same scan as PHANTOM_001" in failed("msd", decathlon)
    content = json.loads((decathlon / "dataset.json").read_text())
    content["training"].append(content["training"][0])
    (decathlon / "dataset.json").write_text(json.dumps(content))
    assert "PHANTOM_000: stands there 2 times" in failed("msd", decathlon)


def test_mixed_orientations_are_brought_to_that_of_the_first(
    decathlon: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["msd", str(decathlon), str(tmp_path / "before")]) == 0
    for folder in ("imagesTr", "labelsTr"):
        path = decathlon / folder / "PHANTOM_003.nii.gz"
        image: Any = nibabel.load(path)
        turned = image.as_reoriented(nibabel.orientations.axcodes2ornt(("P", "I", "R")))
        array, affine = np.asarray(turned.dataobj), turned.affine
        path.unlink()
        nibabel.save(nibabel.Nifti1Image(array, affine), path)
    capsys.readouterr()
    assert main(["msd", str(decathlon), str(tmp_path / "after")]) == 0
    told = capsys.readouterr().out
    assert "Orientations are mixed: 1 " in told and "are brought to RAS, that of PHANTOM_00" in told
    for part in ("train", "validation", "test"):
        pair = [open_volumes(tmp_path / n / f"{part}.h5").cases for n in ("before", "after")]
        for before, after in zip(*pair, strict=True):
            np.testing.assert_allclose(after.image(), before.image(), atol=1e-5)
            np.testing.assert_array_equal(after.label(), before.label())


def test_a_case_without_foreground_is_told_and_kept(
    decathlon: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(decathlon / "labelsTr/PHANTOM_002.nii.gz", lambda a: a * 0)
    assert main(["msd", str(decathlon), str(tmp_path / "data")]) == 0
    assert "Without any foreground: PHANTOM_002." in capsys.readouterr().out


def test_a_class_that_no_case_has_is_told(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--labels", "tumour=1,2,3; other=7")
    assert main(["msd", str(made / "msd"), str(tmp_path / "data"), *options]) == 0
    assert "No case has a voxel of: other." in capsys.readouterr().out


def test_a_patient_stays_in_one_part(made: Path, tmp_path: Path, failed: Failed) -> None:
    """Two cases a patient: PHANTOM_000 to 003 are of patient 00_, by the pattern."""
    target = tmp_path / "data"
    options = ("--patient", r"PHANTOM_0(\d)", "--split", "0.5,0.5,0")
    source = made / "msd"
    told = failed("msd", source, *options)
    assert "0.5,0.5,0 of 1 patients is 0 / 1 / 0" in told
    assert main(["msd", str(source), str(target), "--patient", r"00[0-3]"]) == 0
    facts = json.loads((target / "fingerprint.json").read_text())
    assert len({case["patient"] for case in facts["cases"]}) == 8


def test_a_patient_in_two_parts_of_a_given_split_is_told(
    made: Path, tmp_path: Path, failed: Failed
) -> None:
    source = Path(shutil.copytree(made / "nnunet", tmp_path / "source"))
    told = failed("nnunet", source, "--patient", r"phantom_00")
    assert "its patient phantom_00 is in two parts" in told
    folds = json.loads((source / "splits_final.json").read_text())
    folds[0]["val"].append("phantom_001")
    (source / "splits_final.json").write_text(json.dumps(folds))
    assert "phantom_001: is in train and in val" in failed("nnunet", source)
    folds[0]["val"][-1] = "nobody"
    (source / "splits_final.json").write_text(json.dumps(folds))
    assert "nobody: is no case of labelsTr" in failed("nnunet", source)
    assert "--fold: is 5; accepted: 0 to 4" in failed("nnunet", source, "--fold", "5")


def test_missing_channels_and_labels_of_nnunet_are_told(
    made: Path, tmp_path: Path, failed: Failed
) -> None:
    source = Path(shutil.copytree(made / "nnunet", tmp_path / "source"))
    (source / "imagesTr/phantom_001_0002.nii.gz").unlink()
    (source / "labelsTr/phantom_002.nii.gz").unlink()
    shutil.copy(
        source / "imagesTr/phantom_003_0000.nii.gz", source / "imagesTr/phantom_003_0004.nii.gz"
    )
    told = failed("nnunet", source)
    assert "phantom_001_0002.nii.gz: there is no such file" in told
    assert "labelsTr/phantom_002.nii.gz: there is no such file" in told
    assert "phantom_003_0004.nii.gz: has more channels than the 4 of channel_names" in told


def test_regions_become_classes_the_larger_ones_first(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = made / "nnunet/dataset.json"
    content = json.loads(path.read_text())
    assert content["labels"]["whole tumour"] == [1, 2, 3]
    assert main(["nnunet", str(made / "nnunet"), str(tmp_path / "data")]) == 0
    told = "whole tumour is what is in no tumour core or enhancing tumour."
    assert told in capsys.readouterr().out
    labels = nnunet(made / "nnunet").labels
    assert [*labels] == ["whole tumour", "tumour core", "enhancing tumour"]
    assert classes_for(labels).classes_of(np.array([0, 1, 2, 3])).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        ({"training": []}, "training: has no cases"),
        ({"training": [{"image": "a"}]}, 'training[0]: is {"image": "a"}'),
        ({"labels": {"a": "b"}}, "labels: has ['a']"),
        ({"labels": None}, "labels: is missing"),
        ({"labels": {"a": 1, "b": None}}, "labels: has ['a', 'b']"),
        ({"modality": {}}, "modality: is missing"),
        ({"labels": {"0": "background", "1": "a", "2": "a"}}, "names two values alike"),
    ],
)
def test_a_wrong_dataset_json_is_told(
    decathlon: Path, failed: Failed, edit: dict[str, Any], told: str
) -> None:
    path = decathlon / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **edit}))
    assert told in failed("msd", decathlon)


def test_what_is_no_data_set_is_told(made: Path, tmp_path: Path, failed: Failed) -> None:
    assert "has no dataset.json" in failed("msd", made / "pairs")
    assert "python -m trainer.prepare pairs" in failed("msd", made / "pairs")
    assert "there is no such folder" in failed("msd", tmp_path / "none")
    assert "python -m trainer.prepare nnunet" in failed("msd", made / "nnunet")
    assert "has no DICOM files" in failed("dicom", made / "pairs")
    (tmp_path / "dataset.json").write_text("[1")
    assert "cannot be read" in failed("msd", tmp_path)
    told = failed("pairs", made / "pairs/images")
    assert "--image-pattern" in told


def test_pairs_without_their_other_half_are_told(
    made: Path, tmp_path: Path, failed: Failed
) -> None:
    source = Path(shutil.copytree(made / "pairs", tmp_path / "source"))
    (source / "images/phantom_001.nrrd").unlink()
    (source / "labels/phantom_002.nrrd").unlink()
    told = failed("pairs", source)
    assert "labels/phantom_001.nrrd: has no scan" in told
    assert "images/phantom_002.nrrd: has no label" in told


def test_pairs_in_one_folder_are_told_apart_by_patterns(made: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(COUNT):
        name = f"phantom_{number:03d}"
        shutil.copy(made / f"pairs/images/{name}.nrrd", source / f"{name}_ct.nrrd")
        shutil.copy(made / f"pairs/labels/{name}.nrrd", source / f"{name}_seg.nrrd")
    patterns = ("--image-pattern", "*_ct.nrrd", "--label-pattern", "*_seg.nrrd")
    assert main(["pairs", str(source), str(tmp_path / "data"), *patterns]) == 0
    names = [case.name for case in open_volumes(tmp_path / "data/train.h5").cases]
    assert len(names) == 5 and all(name.startswith("phantom_00") for name in names)


def test_pairs_of_other_names_are_told_how_to_match(
    made: Path, tmp_path: Path, failed: Failed
) -> None:
    source = tmp_path / "source"
    shutil.copytree(made / "pairs", source)
    for path in (source / "labels").iterdir():
        path.rename(path.with_name(path.name.replace(".nrrd", "_seg.nrrd")))
    assert "no scan has the name of a label: phantom_000" in failed("pairs", source)
    patterns = ("--image-pattern", "*.nrrd", "--label-pattern", "*_seg.nrrd")
    assert main(["pairs", str(source), str(tmp_path / "data"), *patterns]) == 0


def test_series_without_labels_need_no_preparation(
    made: Path, tmp_path: Path, failed: Failed
) -> None:
    source = Path(shutil.copytree(made / "dicom", tmp_path / "source"))
    for path in source.rglob("label.nii.gz"):
        path.unlink()
    assert "has no labelled cases" in failed("dicom", source)


def test_labels_beside_the_series_in_a_folder_of_their_own(made: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(made / "dicom", tmp_path / "source"))
    (tmp_path / "labels").mkdir()
    for path in list(source.rglob("label.nii.gz")):
        path.rename(tmp_path / "labels" / f"{path.parent.parent.name}_ct.nii.gz")
    given = ["dicom", str(source), str(tmp_path / "data")]
    assert main([*given, "--label-folder", str(tmp_path / "labels")]) == 0
    facts = json.loads((tmp_path / "data/fingerprint.json").read_text())
    assert facts["channels"] == ["CT"] and facts["cases"][0]["patient"].startswith("patient_")


def test_objects_of_dicom_that_are_no_scan_are_told(
    made: Path, tmp_path: Path, failed: Failed
) -> None:
    pydicom = pytest.importorskip("pydicom")
    source = Path(shutil.copytree(made / "dicom", tmp_path / "source"))
    path = source / "patient_003/ct/slice_000.dcm"
    one = pydicom.dcmread(path)
    one.Modality = "RTSTRUCT"
    one.save_as(path)
    told = failed("dicom", source)
    assert "patient_003_ct" in told and "RTSTRUCT" in told and "not supported" in told


def test_a_target_that_is_not_empty_is_left_alone(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").write_text("kept")
    assert main(["msd", str(made / "msd"), str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert [one.name for one in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--spacing", "1,1"), "--spacing: is '1,1'"),
        (("--spacing", "1,0,1"), "--spacing: is '1,0,1'"),
        (("--reshape", "8,8,x"), "--reshape: is '8,8,x'"),
        (("--reshape", "8,8,8", "--spacing", "1,1,1"), "--reshape: stands beside --spacing"),
        (("--crop", "1,1,1"), "--crop: is '1,1,1'"),
        (("--crop", "9:9,9:9,9:9"), "is cropped by"),
        (("--split", "0.5,0.3,0.3"), "--split: 0.5,0.3,0.3 add up to 1.1"),
        (("--split", "0.5,0.5"), "--split: is '0.5,0.5'"),
        (("--labels", "tumour=1,2", "--labels", "core=2,3"), "share the values [2]"),
        (("--labels", "nothing"), "'nothing' is no label"),
        (("--patient", "("), "--patient: '(' is no regular expression"),
        (("--jobs", "-1"), "--jobs: is -1"),
    ],
)
def test_wrong_options_are_told(
    made: Path, failed: Failed, options: tuple[str, ...], told: str
) -> None:
    assert told in failed("msd", made / "msd", *options)


# ------------------------------------------------------------------------------------------ parts


def test_the_published_cut_points() -> None:
    """484 cases: 338 / 73 / 73, and for 0.8, 0.1, 0.1 387 / 48 / 49."""
    for text, sizes in {
        "0.7,0.15,0.15": (338, 73, 73),
        "0.8,0.1,0.1": (387, 48, 49),
        "0.6,0.3,0.1": (290, 145, 49),
        "0.7,0.2,0.1": (338, 97, 49),
    }.items():
        parts = split_by_patient([f"p{n}" for n in range(484)], read_shares(text), seed=3)
        assert tuple(parts.count(part) for part in ("train", "validation", "test")) == sizes


def test_shares_may_miss_1_by_a_millionth() -> None:
    assert read_shares("0.3333333,0.3333333,0.3333333") == (0.3333333,) * 3
    for wrong in ("0.5,0.3,0.3", "0.7,0.15,0.149", "0,0.5,0.5", "1.2,-0.1,-0.1", "a,b,c", ""):
        with pytest.raises(InputError, match="--split"):
            read_shares(wrong)


def test_all_scans_of_a_patient_go_to_one_part() -> None:
    patients = [f"p{n % 10}" for n in range(40)]
    parts = split_by_patient(patients, (0.6, 0.2, 0.2), seed=0)
    assert len(set(zip(patients, parts, strict=True))) == 10
    assert parts.count("train") == 24
    assert split_by_patient(patients, (0.6, 0.2, 0.2), seed=1) != parts
    assert split_by_patient([f"{n}" for n in range(4)], (0.5, 0.25, 0.25), None) == [
        *("train", "train", "validation", "test")
    ]


def test_labels_are_named_by_groups() -> None:
    known = {"edema": (1,), "core": (2,), "rim": (3,)}
    assert read_labels([], known) == known
    assert read_labels(["whole tumour=1,2,3"], known) == {"whole tumour": (1, 2, 3)}
    assert read_labels(["whole=edema, core,3", "rim"], known) == {"whole": (1, 2, 3), "rim": (3,)}
    assert read_labels(["core"], known) == {"background": (0, 1, 3), "core": (2,)}
    assert read_labels(["a=5"], {}) == {"a": (5,)}
    assert read_labels(["a=5", "background=2,7"], {}) == {"background": (0, 2, 7), "a": (5,)}
    for wrong in (["core", "core"], ["=1"], ["a=b"], ["background"], ["background=1"], ["a=-1"]):
        with pytest.raises(InputError, match="--labels"):
            read_labels(wrong, known)


def test_a_crop_is_read_as_ends_of_axes() -> None:
    assert read_crop("0:0,1:0,2:1") == ((0, 0), (1, 0), (2, 1))


def test_no_more_cases_than_jobs_are_worked_on() -> None:
    started: list[int] = []

    def work(number: int) -> int:
        started.append(number)
        return number

    for number in in_turn(work, range(20), 3):
        assert len(started) <= number + 3
    assert started == [*range(20)]


def test_the_decathlon_lists_cases_in_its_order(made: Path) -> None:
    found = msd(made / "msd", r"\d+$")
    assert [case.name for case in found.cases] == [f"PHANTOM_{n:03d}" for n in range(COUNT)]
    assert found.cases[3].patient == "003" and found.labels["edema"] == (1,)


def test_a_pattern_that_finds_no_patient_is_told(decathlon: Path, failed: Failed) -> None:
    assert "finds a patient in no name" in failed("msd", decathlon, "--patient", "^xyz")


def test_names_that_look_like_one_patient_in_two_parts_are_told(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(shutil.copytree(made / "pairs", tmp_path / "source"))
    for folder in ("images", "labels"):
        for number, path in enumerate(sorted((source / folder).iterdir())):
            path.rename(path.with_name(f"p{number // 2}_v{number % 2}{path.suffix}"))
    assert main(["pairs", str(source), str(tmp_path / "data")]) == 0
    assert "look like one patient in two parts: p" in capsys.readouterr().out
    again = ["pairs", str(source), str(tmp_path / "again"), "--patient", "^[^_]+"]
    assert main(again) == 0
    assert "look like" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--spacing", "0.001,0.001,0.001"), "GiB"),
        (("--reshape", "9000,9000,9000"), "GiB"),
    ],
)
def test_what_cannot_be_prepared_is_told_before_it_begins(
    decathlon: Path, failed: Failed, options: tuple[str, str], told: str
) -> None:
    assert told in failed("msd", decathlon, *options)


def test_a_scan_of_one_value_is_a_fault(decathlon: Path, failed: Failed) -> None:
    path = sorted((decathlon / "imagesTr").iterdir())[0]
    change(path, lambda array: array * 0)
    assert "all its voxels are 0" in failed("msd", decathlon)


def test_labels_without_any_foreground_are_refused(decathlon: Path, failed: Failed) -> None:
    for path in (decathlon / "labelsTr").iterdir():
        change(path, lambda array: array * 0)
    assert "no case has a voxel of any class" in failed("msd", decathlon)


def test_a_value_that_no_case_has_is_told_beside_those_of_its_class(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--labels", "tumour=1,2,99,3")
    assert main(["msd", str(made / "msd"), str(tmp_path / "data"), *options]) == 0
    assert "No case has a voxel of 99, of the values of tumour." in capsys.readouterr().out


@pytest.mark.parametrize("fold", ["-1", "5"])
def test_a_fold_that_is_not_there_is_refused(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fold: str
) -> None:
    assert main(["nnunet", str(made / "nnunet"), str(tmp_path / "data"), "--fold", fold]) == 2
    assert f"--fold: is {fold}; accepted: 0 to 4" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
