"""What is done to a scan before a network sees it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from trainer.data.volumes.grid import Grid, resample
from trainer.data.volumes.preparation import Preparation
from trainer.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
RNG = np.random.default_rng(0)


def grid(shape: tuple[int, ...], spacing: tuple[float, ...] = (1, 1, 1)) -> Grid:
    return Grid(shape, np.diag([*spacing, 1.0]))


def test_it_is_torch_free_at_import() -> None:
    code = "import trainer.data.volumes.preparation, sys; print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.stdout.strip() == "False"


def test_it_does_nothing_by_default() -> None:
    image = RNG.normal(size=(2, 3, 4, 5)).astype(np.float32)
    np.testing.assert_array_equal(Preparation().image(image, grid((3, 4, 5))), image)


def test_it_survives_json() -> None:
    one = Preparation(
        orientation="LPS",
        spacing_mm=(1.6, 1.2, 1.2),
        corners=True,
        clip=(-79, 304),
        normalization="constant",
        mean=(101,),
        std=(76.9,),
        pad_to=(128, 128, 128),
        labels={"kidney": (1,), "tumour": (2,)},
    )
    assert Preparation.model_validate_json(one.model_dump_json()) == one
    assert list(one.labels) == ["kidney", "tumour"] and one.classes[0] == "background"


MLPERF = Preparation(
    spacing_mm=(1.6, 1.2, 1.2),
    corners=True,
    clip=(-79, 304),
    normalization="constant",
    mean=(101,),
    std=(76.9,),
    pad_to=(128, 128, 128),
)


def test_mlperf_doubles_a_grid_of_twice_the_spacing() -> None:
    """Sizes floor(spacing / target * size), float32 spacings, values of -79 to 304 HU."""
    spacing = tuple(float(np.float32(mm)) for mm in (3.2, 2.4, 2.4))
    own = grid((80, 70, 40), spacing)
    image = RNG.normal(0, 1000, (1, *own.shape)).astype(np.float32)
    there = MLPERF.prepared_grid(own)
    assert there.shape == (160, 140, 128)
    made = MLPERF.image(image, own)
    assert made.shape == (1, 160, 140, 128) and made.dtype == np.float32
    assert made.min() == pytest.approx((-79 - 101) / 76.9) == pytest.approx(-2.34070, abs=1e-5)
    assert made.max() == pytest.approx((304 - 101) / 76.9) == pytest.approx(2.63979, abs=1e-5)
    unpadded = MLPERF.model_copy(update={"pad_to": None})
    assert unpadded.prepared_grid(own).shape == (160, 140, 80)
    np.testing.assert_array_equal(made[..., 24:104], unpadded.image(image, own))
    assert (made[..., :24] == made[..., 24:25]).all(), "the outermost values go on"


def test_mlperf_resamples_as_torch_does_with_aligned_corners() -> None:
    import torch

    own = grid((20, 14, 11), (3.3, 2.1, 1.9))
    image = RNG.normal(0, 100, (1, *own.shape)).astype(np.float32)
    size = (41, 24, 17)
    published = torch.nn.functional.interpolate(
        torch.from_numpy(image)[None], size=size, mode="trilinear", align_corners=True
    )[0].numpy()
    made = Preparation(spacing_mm=(1.6, 1.2, 1.2), corners=True).image(image, own)
    np.testing.assert_allclose(made, published, atol=1e-3)


def test_sizes_are_rounded_without_corners() -> None:
    assert Preparation(spacing_mm=(2, 2, 2)).prepared_grid(grid((3, 5, 8))).shape == (2, 3, 4)
    assert Preparation(shape=(4, 9, 2)).prepared_grid(grid((3, 5, 8))).shape == (4, 9, 2)


def test_prepared_voxels_lie_where_the_grid_says() -> None:
    """An image whose value is the place in millimetres tells where each voxel came from."""
    affine = np.array([[0, -1.5, 0, 9], [2.5, 0, 0, -4], [0, 0, -3, 5], [0, 0, 0, 1]])
    own = Grid((12, 16, 9), affine)
    places = np.stack(np.meshgrid(*map(np.arange, own.shape), indexing="ij"), -1)
    mm = (places @ affine[:3, :3].T + affine[:3, 3]).transpose(3, 0, 1, 2)
    preparation = Preparation(
        orientation="RAS", crop=((2, 1), (0, 3), (1, 0)), spacing_mm=(1, 2, 2.5)
    )
    there = preparation.prepared_grid(own)
    assert there.orientation == "RAS"
    made = preparation.image(mm, own)[:, 1:-1, 1:-1, 1:-1]  # edges are held
    new = np.stack(np.meshgrid(*map(np.arange, there.shape), indexing="ij"), -1)
    told = (new @ there.affine[:3, :3].T + there.affine[:3, 3]).transpose(3, 0, 1, 2)
    np.testing.assert_allclose(made, told[:, 1:-1, 1:-1, 1:-1], atol=1e-3)


def test_axes_that_run_askew_to_the_world_are_kept() -> None:
    """A gantry that is tilted by 20 degrees: spacings change, directions do not."""
    import torch

    angle = np.radians(20)
    turn = np.array(
        [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1.0, -1, 2])
    own = Grid((14, 12, 10), affine)
    preparation = Preparation(orientation="RAS", spacing_mm=(0.5, 1, 1), labels={"a": (1,)})
    there = preparation.prepared_grid(own)
    assert there.shape == (28, 12, 20) and there.spacing_mm == pytest.approx((0.5, 1, 1))
    label = RNG.integers(0, 2, own.shape)
    made = preparation.label(label, own)
    back = resample(torch.from_numpy(made)[None], there, own, linear=False)[0].numpy()
    np.testing.assert_array_equal(back, label)


def test_a_label_goes_there_and_back() -> None:
    import torch

    affine = np.diag([-1.0, 1, -2, 1])
    own = Grid((20, 24, 18), affine)
    label = np.zeros(own.shape, np.int16)
    label[4:12, 6:18, 3:9] = 7
    preparation = Preparation(orientation="RAS", spacing_mm=(0.5, 0.5, 1), labels={"a": (7,)})
    made = preparation.label(label, own)
    assert made.dtype == np.uint8 and made.shape == (40, 48, 36) and made.sum() == 8 * (8 * 12 * 6)
    there = preparation.prepared_grid(own)
    back = resample(torch.from_numpy(made)[None], there, own, linear=False)[0].numpy()
    np.testing.assert_array_equal(back * 7, label)


def test_normalization_of_a_case_is_of_each_channel() -> None:
    image = np.stack([RNG.normal(5, 3, (6, 7, 8)), RNG.normal(-50, 9, (6, 7, 8))])
    made = Preparation(normalization="case").image(image, grid((6, 7, 8)))
    np.testing.assert_allclose(made.mean((1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(made.std((1, 2, 3)), 1, atol=1e-5)


def test_normalization_of_a_brain_is_over_all_channels() -> None:
    image = np.stack([RNG.normal(5, 3, (6, 7, 8)), RNG.normal(-50, 9, (6, 7, 8))])
    made = Preparation(normalization="brain").image(image, grid((6, 7, 8)))
    np.testing.assert_allclose(made, (image - image.mean()) / image.std(), atol=1e-5)


def test_the_deviation_of_a_constant_scan_has_a_floor() -> None:
    """1 / sqrt(voxels), as in tf.image.per_image_standardization."""
    image = np.zeros((1, 10, 10, 10))
    image[0, 0, 0, 0] = 1e-6
    made = Preparation(normalization="case").image(image, grid((10, 10, 10)))
    assert made.max() == pytest.approx((1e-6 - 1e-9) * np.sqrt(1000), rel=1e-3)


def test_clipping_comes_before_normalization() -> None:
    image = np.array([0.0, 1, 2, 1000]).reshape(1, 1, 1, 4)
    made = Preparation(clip=(0, 3), normalization="case").image(image, grid((1, 1, 4)))
    np.testing.assert_allclose(made.ravel(), (np.arange(4) - 1.5) / np.sqrt(1.25), rtol=1e-6)


def test_channels_are_chosen_by_index() -> None:
    image = RNG.normal(size=(4, 2, 2, 2)).astype(np.float32)
    made = Preparation(channels=(3, 0)).image(image, grid((2, 2, 2)))
    np.testing.assert_array_equal(made, image[[3, 0]])
    with pytest.raises(InputError, match="4 channels"):
        Preparation(channels=(4,)).image(image, grid((2, 2, 2)))


def test_groups_become_classes_and_a_part_wins_over_its_whole() -> None:
    labels = {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
    values = np.array([0, 1, 2, 3, 3, 0])
    assert Preparation(labels=labels).classes_of(values).tolist() == [0, 1, 2, 3, 3, 0]
    labels = {"background": (0, 1), "tumour": (2, 3)}
    one = Preparation(labels=labels)
    assert one.classes == ["background", "tumour"]
    assert one.classes_of(values.astype(np.float32)).tolist() == [0, 0, 1, 1, 1, 0]


@pytest.mark.parametrize(
    "labels",
    [
        {"a": (1, 2), "b": (2, 3)},
        {"a": (1,), "b": (1,)},
        {"a": (0, 1)},
        {"a": ()},
        {"background": (0, 3), "a": (3,)},
    ],
)
def test_classes_that_overlap_are_refused(labels: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(ValidationError, match=r"share the values|no values"):
        Preparation(labels=labels)


@pytest.mark.parametrize("values", [[0, 1, 7], [0.0, 1.0, 7.0], [-1, 0, 1], [0, 1, 100_000]])
def test_a_value_of_no_class_is_named(values: list[float]) -> None:
    with pytest.raises(InputError, match=r"case_3: has the value (7|-1|100000)"):
        Preparation(labels={"a": (1,)}).classes_of(np.array(values), "case_3")


def test_fractions_and_no_numbers_are_values_of_no_class() -> None:
    with pytest.raises(InputError, match=r"has the values 0.5, nan"):
        Preparation(labels={"a": (1,)}).classes_of(np.array([0, 0.5, np.nan]))


@pytest.mark.parametrize(
    "keys",
    [
        {"orientation": "RAA"},
        {"orientation": "RA"},
        {"shape": (4, 4, 4), "spacing_mm": (1, 1, 1)},
        {"clip": (3, 1)},
        {"normalization": "constant"},
        {"mean": (1,), "std": (1,)},
        {"normalization": "constant", "mean": (1,), "std": (0,)},
        {"spacing_mm": (1, 0, 1)},
        {"unknown": 1},
        {"labels": {f"class {n}": (n,) for n in range(1, 257)}},
    ],
)
def test_what_cannot_be_is_refused(keys: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Preparation.model_validate(keys)


def test_a_crop_that_leaves_nothing_is_told() -> None:
    with pytest.raises(InputError, match="4x4x4 is cropped"):
        Preparation(crop=((2, 2), (0, 0), (0, 0))).prepared_grid(grid((4, 4, 4)))


def test_a_spacing_of_single_precision_loses_no_slice() -> None:
    """3.2 mm as float32 is a little more, 1.6 a little less than twice it: 20 slices stay 20."""
    for own, target, size in ((1.6, 1.6, 20), (3.2, 1.6, 20), (0.7, 1.4, 20)):
        affine = np.diag([float(np.float32(own)), 1.0, 1.0, 1.0])
        one = Preparation(spacing_mm=(target, 1, 1), corners=True)
        found = one.prepared_grid(Grid((size, 4, 4), affine)).shape[0]
        assert found == round(size * own / target)
