from pathlib import Path

import pytest

from tests import studies
from trainer.data.folders import find_layout
from trainer.data.volumes.raw_layout import kind_of_scans
from trainer.errors import InputError
from trainer.prepare.phantoms import make_phantoms


@pytest.mark.parametrize("kind", ["msd", "nnunet", "pairs", "dicom", "kits19", "lits", "brats"])
def test_raw_scans_are_named_with_the_command_that_prepares_them(kind: str, tmp_path: Path) -> None:
    raw = tmp_path / "my scans"
    make_phantoms(kind, raw, cases=1, size=16)
    wanted = "brats-slices" if kind == "brats" else kind
    assert kind_of_scans(raw) == wanted
    with pytest.raises(InputError) as told:
        find_layout(raw)
    assert told.value.fix.startswith(f"python -m trainer.prepare {wanted} '{raw}' ")


def test_a_folder_without_scans_has_no_kind(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "array.npy").write_text("")
    assert kind_of_scans(tmp_path) is None
    assert kind_of_scans(tmp_path / "missing") is None


def test_scans_in_folders_of_images_are_named_as_scans(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.nii.gz").write_bytes(b"")
    code, out, err = studies.typed_here(tmp_path, "check", "--data", str(tmp_path))
    assert code == 2
    assert "this is a scan" in out + err and "trainer.prepare" in out + err


def test_a_folder_of_prepared_folders_says_which_to_name(tmp_path: Path) -> None:
    (tmp_path / "brain 1").mkdir()
    (tmp_path / "brain 1/imgs_train.npy").touch()
    with pytest.raises(InputError, match="its folder brain 1 is one to study") as told:
        find_layout(tmp_path)
    assert told.value.fix == f"--data '{tmp_path}/brain 1'"
