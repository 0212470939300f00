"""Scans and labels as files, read and written."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK

from trainer.data.volumes.grid import Grid
from trainer.data.volumes.scans import (
    list_scans,
    read_grid,
    read_label,
    read_scan,
    stem_of,
    write_label,
)
from trainer.errors import InputError

RNG = np.random.default_rng(0)
SHAPE = (5, 6, 7)
AFFINE = np.array([[0, -1.5, 0, 9], [2.5, 0, 0, -4], [0, 0, -3, 5], [0, 0, 0, 1.0]])


def nifti(path: Path, array: Any, affine: Any = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".NII.GZ"])
def test_nifti_is_read_as_it_lies(tmp_path: Path, suffix: str) -> None:
    array = RNG.normal(size=SHAPE).astype(np.float32)
    path = nifti(tmp_path / f"a{suffix.lower()}", array)
    path = path.rename(path.with_name(f"a{suffix}"))
    scan = read_scan(path)
    np.testing.assert_array_equal(scan.array, array[None])
    np.testing.assert_allclose(scan.grid.affine, AFFINE)
    assert scan.name == "a" and scan.grid.orientation == "ALI"
    assert scan.array.dtype == np.float32 and scan.array.flags.c_contiguous


def test_channels_of_nifti_are_last_and_come_first(tmp_path: Path) -> None:
    array = RNG.normal(size=(*SHAPE, 4)).astype(np.float32)
    scan = read_scan(nifti(tmp_path / "a.nii", array))
    np.testing.assert_array_equal(scan.array, np.moveaxis(array, 3, 0))
    assert read_grid(tmp_path / "a.nii")[1] == 4
    single = read_scan(nifti(tmp_path / "b.nii", array[..., :1]))
    assert single.array.shape == (1, *SHAPE)
    vector = read_scan(nifti(tmp_path / "c.nii", array[:, :, :, None]))
    np.testing.assert_array_equal(vector.array, scan.array)


def test_stored_numbers_are_scaled_without_overflow(tmp_path: Path) -> None:
    stored = np.array([-32768, -1, 0, 1, 32767, 100], np.int16).reshape(1, 2, 3)
    image = nibabel.Nifti1Image(stored, AFFINE)
    image.header.set_slope_inter(2.5, -1000)
    # nibabel scales back what it saves, so the stored numbers are written by hand.
    raw = image.header.copy()
    raw["vox_offset"] = 352
    path = tmp_path / "a.nii"
    path.write_bytes(raw.binaryblock + b"\0" * 4 + stored.tobytes(order="F"))
    np.testing.assert_allclose(read_scan(path).array[0], stored * 2.5 - 1000)


def test_a_scaled_label_is_whole_numbers(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.arange(6, dtype=np.float32).reshape(1, 2, 3) / 3 * 3, AFFINE)
    image.set_data_dtype(np.uint8)
    nibabel.save(image, tmp_path / "a.nii")
    label, _ = read_label(tmp_path / "a.nii")
    assert label.dtype.kind in "iu" and label.ravel().tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd"])
@pytest.mark.parametrize("channels", [1, 3])
def test_files_of_itk_lie_where_nifti_does(tmp_path: Path, suffix: str, channels: int) -> None:
    """Axes i, j, k and RAS+ from SimpleITK's k, j, i and LPS+."""
    array = RNG.normal(size=(channels, *SHAPE)).astype(np.float32)
    swapped = array.transpose(3, 2, 1, 0) if channels > 1 else array[0].transpose(2, 1, 0)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(swapped), isVector=channels > 1)
    lps = np.diag([-1.0, -1, 1, 1]) @ AFFINE
    image.SetSpacing((2.5, 1.5, 3.0))
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / [2.5, 1.5, 3]).ravel().tolist())
    SimpleITK.WriteImage(image, str(tmp_path / f"a{suffix}"))
    if channels == 1:  # what SimpleITK itself writes as NIfTI
        SimpleITK.WriteImage(image, str(tmp_path / "b.nii.gz"))
        np.testing.assert_allclose(read_scan(tmp_path / "b.nii.gz").grid.affine, AFFINE, atol=1e-5)
    scan = read_scan(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(scan.array, array)
    np.testing.assert_allclose(scan.grid.affine, AFFINE, atol=1e-6)


def test_numpy_files_have_channels_first(tmp_path: Path) -> None:
    for array in (RNG.normal(size=SHAPE), RNG.normal(size=(2, *SHAPE))):
        np.save(tmp_path / "a.npy", array)
        scan = read_scan(tmp_path / "a.npy")
        np.testing.assert_allclose(scan.array, array.reshape(-1, *SHAPE), rtol=1e-6)
        assert scan.grid.spacing_mm == (1, 1, 1)


def test_a_file_a_channel_is_one_scan(tmp_path: Path) -> None:
    arrays = [RNG.normal(size=SHAPE).astype(np.float32) for _ in range(2)]
    paths = [nifti(tmp_path / f"brain_000{i}.nii.gz", one) for i, one in enumerate(arrays)]
    scan = read_scan(paths)
    np.testing.assert_array_equal(scan.array, arrays)
    assert scan.name == "brain"
    nifti(paths[1], arrays[1], np.eye(4))
    with pytest.raises(InputError, match=r"brain_0001.*lies on other voxels than brain_0000"):
        read_scan(paths)


def test_broken_files_are_told(tmp_path: Path) -> None:
    array = RNG.normal(size=(20, 20, 20)).astype(np.float32)
    whole = nifti(tmp_path / "a.nii", array).read_bytes()
    faults = {
        "cut.nii": whole[:-500],
        "empty.nii": b"",
        "text.nii.gz": b"this is no volume",
        "cut.nii.gz": gzip.compress(whole)[:-900],
        "cut.nrrd": b"NRRD0004\ntype: float\ndimension: 3\nsizes: 9 9 9\nencoding: raw\n\n12",
        "text.mha": b"nothing",
        "text.npy": b"nothing",
        "header.npy": b"\x93NUMPY\x01\x00\x0e\x00{'descr': '<f8'",
        "negative.nii": whole[:42] + (-20 & 0xFFFF).to_bytes(2, "little") + whole[44:],
    }
    for name, content in faults.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"{name}: cannot be read"):
            read_scan(tmp_path / name)
    np.save(tmp_path / "o.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(InputError, match="cannot be read"):
        read_scan(tmp_path / "o.npy")
    with pytest.raises(InputError, match="no such file"):
        read_scan(tmp_path / "none.nii")
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match="is no scan"):
        read_scan(tmp_path / "a.png")


def test_wrong_axes_and_no_numbers_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has 2 axes \(5x6\)"):
        read_scan(nifti(tmp_path / "flat.nii", np.zeros((5, 6), np.float32)))
    with pytest.raises(InputError, match="has 5 axes"):
        read_scan(nifti(tmp_path / "five.nii", np.zeros((*SHAPE, 2, 3), np.float32)))
    array = np.zeros(SHAPE, np.float32)
    array[1, 2, 3], array[0, 0, 0] = np.nan, np.inf
    with pytest.raises(InputError, match="2 of its 210 values are not a number"):
        read_scan(nifti(tmp_path / "nan.nii", array))
    with pytest.raises(InputError, match="not a number"):
        read_label(nifti(tmp_path / "nan.nii", array))
    with pytest.raises(InputError, match=r"has the value 0.5"):
        read_label(nifti(tmp_path / "half.nii", np.full(SHAPE, 0.5, np.float32)))
    with pytest.raises(InputError, match="has 3 channels"):
        read_label(nifti(tmp_path / "c.nii", np.zeros((*SHAPE, 3), np.uint8)))


def test_the_scans_of_a_folder_are_found_by_name(tmp_path: Path) -> None:
    for name in ("b.nii.gz", "a.mha", ".hidden.nii", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [files.name for files in list_scans(tmp_path)] == ["a", "b"]
    assert list_scans(tmp_path / "b.nii.gz")[0].name == "b"
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no scans"):
        list_scans(tmp_path / "empty")


def test_numbered_channels_are_one_scan_where_each_case_has_them_all(tmp_path: Path) -> None:
    for name in ("a_0000", "a_0001", "b_0000", "b_0001"):
        (tmp_path / f"{name}.nii.gz").write_bytes(b"")
    found = list_scans(tmp_path)
    assert [one.name for one in found] == ["a", "b"]
    assert [path.name for path in found[1].paths] == ["b_0000.nii.gz", "b_0001.nii.gz"]
    assert [one.name for one in list_scans(tmp_path, channels=1)] == [
        *("a_0000", "a_0001", "b_0000", "b_0001")
    ]
    (tmp_path / "b_0001.nii.gz").unlink()
    assert len(list_scans(tmp_path)) == 3


@pytest.mark.parametrize("codes", [(1, 1), (1, 0), (0, 2), (3, 4)])
def test_a_written_label_has_the_header_of_its_scan(tmp_path: Path, codes: tuple[int, int]) -> None:
    image = nibabel.Nifti1Image(RNG.normal(size=(*SHAPE, 2)).astype(np.float32), AFFINE)
    image.set_qform(AFFINE, code=codes[0])
    image.set_sform(AFFINE, code=codes[1])
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, tmp_path / "a.nii.gz")
    grid = read_scan(tmp_path / "a.nii.gz").grid
    label = RNG.integers(0, 3, SHAPE).astype(np.uint8)
    path = write_label(tmp_path / "out/a", label, grid, like=tmp_path / "a.nii.gz")
    assert path.name == "a.nii.gz" and [one.name for one in path.parent.iterdir()] == [path.name]
    written: Any = nibabel.load(path)
    np.testing.assert_array_equal(np.asarray(written.dataobj), label)
    assert written.get_data_dtype() == np.uint8
    for key in ("qform_code", "sform_code", "xyzt_units", "srow_x", "quatern_b", "qoffset_z"):
        np.testing.assert_array_equal(written.header[key], image.header[key])
    np.testing.assert_array_equal(written.header["pixdim"][:4], image.header["pixdim"][:4])
    np.testing.assert_allclose(written.affine, image.affine)


@pytest.mark.parametrize("suffix", [".nii", ".mha", ".mhd", ".nrrd", ".npy"])
def test_a_label_comes_back_as_the_kind_of_file_it_belongs_to(tmp_path: Path, suffix: str) -> None:
    grid = Grid(SHAPE, np.eye(4) if suffix == ".npy" else AFFINE)
    label = RNG.integers(0, 3, SHAPE).astype(np.uint8)
    like = tmp_path / f"scan{suffix}"
    if suffix == ".nii":
        nifti(like, label)
    path = write_label(tmp_path / "a", label, grid, like=like)
    assert path.name == f"a{suffix.replace('.mhd', '.mha')}"  # in one file
    back, there = read_label(path)
    np.testing.assert_array_equal(back, label)
    assert back.dtype == np.uint8 and there.same_as(grid)


def test_a_label_of_no_file_is_nifti(tmp_path: Path) -> None:
    grid = Grid(SHAPE, AFFINE)
    path = write_label(tmp_path / "a", np.ones(SHAPE, np.uint8), grid, like=tmp_path)
    assert path.name == "a.nii.gz" and stem_of(path) == "a"
    assert read_label(path)[1].same_as(grid)


# DICOM

pydicom = pytest.importorskip("pydicom")


@pytest.fixture
def series(tmp_path: Path) -> tuple[Path, np.ndarray, Grid]:
    """A folder with a series, its volume, and its grid."""
    from trainer.prepare.phantom_dicom import write_series

    grid = Grid(
        SHAPE, np.array([[-0.7, 0, 0, 30], [0, -0.8, 0, 40], [0, 0, 2.5, -50], [0, 0, 0, 1]])
    )
    volume = RNG.integers(-1000, 2000, SHAPE).astype(np.float32)
    write_series(tmp_path / "case_1", volume, grid, "patient 1", number=1)
    return tmp_path / "case_1", volume, grid


def test_a_series_is_a_volume_in_the_order_of_its_places(
    series: tuple[Path, np.ndarray, Grid],
) -> None:
    folder, volume, grid = series
    for number, path in enumerate(sorted(folder.iterdir(), reverse=True)):
        path.rename(folder / f"x{number}")  # names say nothing
    (folder / "notes.txt").write_text("not a slice")
    scan = read_scan(folder)
    np.testing.assert_array_equal(scan.array[0], volume)
    assert scan.grid.same_as(grid) and scan.name == "case_1"
    assert [one.name for one in list_scans(folder.parent)] == ["case_1"]
    assert list_scans(folder)[0].paths == (folder,)


def test_a_series_lies_where_simpleitk_sees_it(series: tuple[Path, np.ndarray, Grid]) -> None:
    folder, volume, _ = series
    names = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    image = SimpleITK.ReadImage(names)
    SimpleITK.WriteImage(image, str(folder.parent / "itk.nrrd"))
    other = read_scan(folder.parent / "itk.nrrd")
    np.testing.assert_array_equal(other.array[0], volume)
    np.testing.assert_allclose(other.grid.affine, read_scan(folder).grid.affine, atol=1e-5)


def change(path: Path, **values: Any) -> None:
    one = pydicom.dcmread(path)
    for name, value in values.items():
        setattr(one, name, value)
    one.save_as(path)


def test_faults_of_a_series_are_told(series: tuple[Path, np.ndarray, Grid]) -> None:
    folder, _, _ = series
    files = sorted(folder.iterdir())
    kept = files[3].read_bytes()

    def told(match: str) -> None:
        with pytest.raises(InputError, match=match):
            read_scan(folder)
        files[3].write_bytes(kept)

    files[3].unlink()
    told(r"a slice is missing: from -45 to -40 mm, else 2.5 mm apart")
    change(files[3], ImagePositionPatient=[-30, -40, -42.0])
    told("slices are uneven")
    change(files[3], ImagePositionPatient=[-30, -40, -45.0])
    told("two slices at -45 mm")
    change(files[3], SeriesInstanceUID="2.25.9")
    told(r"mixes 2 series: 2.25.2 \(6 files\), 2.25.9 \(1 files\)")
    change(files[3], Modality="RTSTRUCT")
    told(r"slice_003.dcm: holds contours \(RTSTRUCT\), which is not supported")
    change(files[3], Modality="SEG")
    told(r"segmentation object \(SEG\), which is not supported")
    change(files[3], PixelSpacing=[1, 1])
    told("slice_003.dcm: has another pixel spacing than slice_000.dcm")
    files[3].write_bytes(kept.replace(b"\\-42.5 ", b"\\-4x.5 "))
    told("slice_003.dcm: cannot be read")
    change(files[3], ImageOrientationPatient=[1, 0, 0, 1, 0, 0])
    told("slice_003.dcm: does not say where its pixels lie")
    files[3].write_bytes(kept[:-40])
    told("slice_003.dcm: its pixels cannot be read")
    for path in files[1:]:
        path.unlink()
    with pytest.raises(InputError, match="has 1 DICOM slices"):
        read_scan(folder)


def test_slope_and_intercept_are_of_each_slice(series: tuple[Path, np.ndarray, Grid]) -> None:
    folder, volume, _ = series
    path = folder / "slice_002.dcm"
    change(path, RescaleSlope=3, RescaleIntercept=-7)
    array = read_scan(folder).array[0]
    np.testing.assert_allclose(array[..., 2], (volume[..., 2] + 1024) * 3 - 7)
    np.testing.assert_array_equal(array[..., 1], volume[..., 1])


def test_pydicom_is_asked_for_where_it_is_missing(
    series: tuple[Path, np.ndarray, Grid], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(InputError, match="pip install pydicom"):
        read_scan(series[0])


def test_cases_of_kits19_are_scans_by_the_name_of_their_folder(tmp_path: Path) -> None:
    for case in ("case_00001", "case_00000"):
        (tmp_path / case).mkdir()
        (tmp_path / case / "imaging.nii.gz").touch()
        (tmp_path / case / "segmentation.nii.gz").touch()
    assert list_scans(tmp_path) == [
        (case, (tmp_path / case / "imaging.nii.gz",)) for case in ("case_00000", "case_00001")
    ]
    own = tmp_path / "case_00000"
    assert list_scans(own) == [("case_00000", (own / "imaging.nii.gz",))]
