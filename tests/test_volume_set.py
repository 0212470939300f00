"""trainer/data/volumes/{volume_set,augment,volume_file}.py: crops of prepared volumes."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from tests.volumes import write_volumes
from trainer.config import Data, Patches
from trainer.data.volumes.augment import VolumeTransform
from trainer.data.volumes.volume_file import open_volumes
from trainer.data.volumes.volume_set import VolumeSet
from trainer.errors import InputError


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_volumes(tmp_path_factory.mktemp("prepared"))


def patches(size: int = 16, **keys: object) -> Patches:
    return Patches.model_validate({"size": [size] * 3, **keys})


def open_set(prepared: Path, **keys: object) -> VolumeSet:
    return VolumeSet(open_volumes(prepared / "train.h5").cases, patches(**keys))


ALL = torch.arange(12)


def test_what_was_written_is_read(prepared: Path) -> None:
    volumes = open_volumes(prepared / "train.h5")
    assert volumes.header.classes == ["background", "ball", "shell"]
    case = volumes.cases[0]
    image, label = case.image(), case.label()
    assert image.shape == (1, *case.grid.shape) and label.shape == case.grid.shape
    assert tuple(np.bincount(label.ravel(), minlength=3)) == case.voxels
    region = (slice(2, 5), slice(0, 7), slice(3, 4))
    assert np.array_equal(case.image(region), image[:, 2:5, :7, 3:4])
    assert case.original_label().shape == case.original.shape != case.grid.shape
    rows = case.locations()
    assert (label[tuple(rows[:, 1:].T)] == rows[:, 0]).all() and set(rows[:, 0]) == {1, 2}


def test_a_folder_of_files_is_one_set_and_names_stand_once(prepared: Path, tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.h5").write_bytes((prepared / f"{name}.h5").read_bytes())
    assert len(open_volumes(tmp_path).cases) == 8
    (tmp_path / "again.h5").write_bytes((prepared / "test.h5").read_bytes())
    with pytest.raises(InputError, match="two cases of the name case_"):
        open_volumes(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [("schema", "other", "no file of prepared"), ("schema_version", 9, "version 9")],
)
def test_other_files_are_told(
    prepared: Path, tmp_path: Path, key: str, value: object, told: str
) -> None:
    copy = tmp_path / "train.h5"
    copy.write_bytes((prepared / "train.h5").read_bytes())
    with h5py.File(copy, "a") as file:
        file.attrs[key] = value
    with pytest.raises(InputError, match=told):
        open_volumes(copy)
    copy.write_bytes((prepared / "train.h5").read_bytes()[:5000])
    with pytest.raises(InputError, match="cannot be read"):
        open_volumes(copy)


def test_crops_are_the_same_from_memory_and_from_the_file(prepared: Path) -> None:
    kept, read = open_set(prepared, per_case=2), open_set(prepared, per_case=2)
    kept.preload(2)
    for one in (kept, read):
        one.begin(seed=3, epoch=2)
    for a, b in zip(kept.batch(ALL), read.batch(ALL), strict=True):
        assert a is not None and b is not None
        assert torch.equal(a.nan_to_num(-1), b.nan_to_num(-1))


def test_a_crop_depends_on_seed_epoch_and_number_alone(prepared: Path) -> None:
    samples = open_set(prepared, per_case=2)
    samples.begin(seed=0, epoch=1)
    images, _ = samples.batch(ALL)
    again, _ = samples.batch(torch.tensor([7, 2]))
    assert torch.equal(again[0], images[7]) and torch.equal(again[1], images[2])
    assert not torch.equal(images[0], images[1])  # two crops of one case
    samples.begin(seed=0, epoch=2)
    assert not torch.equal(samples.batch(ALL)[0], images)
    samples.begin(seed=1, epoch=1)
    assert not torch.equal(samples.batch(ALL)[0], images)


def test_what_lies_outside_of_a_volume_is_padding_that_counts_nowhere(prepared: Path) -> None:
    samples = open_set(prepared, size=32)
    images, targets = samples.batch(torch.arange(6))
    assert images.shape == (6, 1, 32, 32, 32) and targets is not None
    for number, case in enumerate(samples.cases):
        inside = ~targets[number, 0].isnan()
        assert inside.sum() == np.prod(case.grid.shape)
        assert (images[number, 0][~inside] == 0).all()
        assert int((targets[number, 0] == 1).sum()) == case.voxels[1]


def transformed(*transforms: dict[str, object]) -> VolumeTransform:
    return VolumeTransform(
        Data.model_validate({"type": "hdf5", "patches": patches(), "transforms": list(transforms)})
    )


def crops(number: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(number, 1, 6, 7, 8)
    return x, (x > 0).float()


def test_flips_are_of_image_and_label_alike_and_as_often_as_asked() -> None:
    x, y = crops(600)
    flipped, labels = transformed({"random_flip": 1 / 3}).augmented(x, y, torch.arange(600), 1, 0)
    assert torch.equal((flipped > 0).float(), labels)
    for axis in (2, 3, 4):
        others = [a for a in (2, 3, 4) if a != axis]
        count = 0
        for turn in ([], others[:1], others[1:], others):
            only = x.flip([axis, *turn])
            count += int((flipped == only).flatten(1).all(1).sum())
        assert abs(count / 600 - 1 / 3) < 0.06


def test_factor_and_noise_change_inputs_alone_within_their_bounds() -> None:
    x, y = crops()
    one = transformed({"random_factor": {"probability": 0.5, "low": 1.7, "high": 2.3}})
    changed, labels = one.augmented(x, y, torch.arange(200), 1, 0)
    ratio = (changed / x).flatten(1)
    touched = (ratio[:, 0] - 1).abs() > 1e-3
    assert torch.equal(labels, y) and abs(touched.float().mean() - 0.5) < 0.12
    assert ratio[touched].min() > 1.699 and ratio[touched].max() < 2.301
    one = transformed({"random_noise": {"probability": 1.0, "std": 0.1}})
    noise = one.augmented(x, y, torch.arange(200), 1, 0)[0] - x
    spread = noise.flatten(1).std(1)
    assert 0.05 < spread.max() < 0.115 and spread.min() < 0.02
    assert noise.mean().abs() < 0.005


def test_an_affine_moves_image_and_label_alike() -> None:
    label = torch.zeros(8, 1, 24, 24, 24)
    label[:, :, 6:14, 8:16, 9:18] = 1
    one = transformed({"random_affine": {"degrees": 25, "zoom": 0.2, "shift": 0.1}})
    x, y = one.augmented(label * 4 - 2, label, torch.arange(8), 1, 0)
    counted = ~y.isnan()
    agree = ((x > 0) == (y == 1))[counted].float().mean()
    assert agree > 0.98 and not torch.equal(y.nan_to_num(0), label)
    still = transformed({"random_affine": {"probability": 0.0, "degrees": 25}})
    assert torch.equal(still.augmented(label, label, torch.arange(8), 1, 0)[0], label)


def test_a_turn_does_not_shear_a_crop_that_is_no_cube() -> None:
    """A ball stays a ball: its extent is the same along each axis."""
    place = torch.stack(
        torch.meshgrid(torch.arange(20.0), torch.arange(32.0), torch.arange(44.0), indexing="ij")
    )
    middle = torch.tensor([9.5, 15.5, 21.5]).view(3, 1, 1, 1)
    ball = ((place - middle).norm(dim=0) < 7).float()[None, None].repeat(6, 1, 1, 1, 1)
    one = transformed({"random_affine": {"degrees": 90}})
    _, y = one.augmented(ball, ball, torch.arange(6), 1, 0)
    for moved in y.nan_to_num(0)[:, 0]:
        for axis in range(3):
            others = [a for a in range(3) if a != axis]
            extent = int(moved.amax(dim=others).sum())
            assert abs(extent - 14) <= 2  # of voxels, turned as cubes; a shear would make it 20


def test_augmentation_is_of_the_crop_not_of_its_batch() -> None:
    x, y = crops(20)
    one = transformed(
        {"random_flip": 0.5},
        {"random_affine": {"degrees": 20, "zoom": 0.1}},
        {"random_noise": {"probability": 0.5, "std": 0.3}},
    )
    whole, _ = one.augmented(x, y, torch.arange(20), 4, 7)
    few, _ = one.augmented(x[5:8], y[5:8], torch.arange(5, 8), 4, 7)
    assert torch.allclose(whole[5:8], few, atol=1e-6)
    assert not torch.allclose(one.augmented(x, y, torch.arange(20), 5, 7)[0], whole)


def test_a_crop_that_begins_outside_has_each_voxel_in_its_place(prepared: Path) -> None:
    for kept in (False, True):
        samples = open_set(prepared, size=26, per_case=4)
        if kept:
            samples.preload(1)
        samples.begin(seed=5, epoch=1)
        for index in range(8):
            start, case = samples.start(index), samples.cases[index // 4]
            wide = [(26, 26)] * 3
            image = np.pad(case.image()[0], wide)
            label = np.pad(case.label().astype(np.float32), wide, constant_values=np.nan)
            place = tuple(slice(26 + s, 52 + s) for s in start)
            x, y = samples.batch(torch.tensor([index]))
            assert y is not None and min(start) < 0
            assert np.array_equal(x[0, 0].numpy(), image[place])
            assert np.array_equal(y[0, 0].numpy(), label[place], equal_nan=True)
