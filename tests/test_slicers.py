"""Slicers: how many blocks, where they lie, what they hold, and back again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from trainer.config import Slicer
from trainer.data.slicers import Grid, checked_grid, slicer_names, slicing_lines
from trainer.errors import InputError


def grid(shape: tuple[int, ...], **settings: Any) -> Grid:
    return Grid(Slicer.model_validate(settings), shape)


def cut(volume: NDArray[np.float32], of: Grid, number: int) -> NDArray[np.float32]:
    """A block (1, …) by numpy alone: what the readers do with tensors."""
    block = np.pad(volume[of.region(number)], of.zeros(number))
    block = block.reshape([of.padded[axis] for axis in of.kept])
    return (block.T if of.slicer.transpose else block)[None]


@pytest.mark.parametrize(
    ("shape", "settings", "counts"),
    [
        ((704, 590, 1006), {"sizes": [64, 64, 256], "strides": [64, 64, 17]}, (11, 9, 45)),
        ((78, 590, 1006), {"sizes": [64, 64, 256], "strides": [64, 64, 17]}, (1, 9, 45)),
        ((78, 590, 1006), {"sizes": [64, 576, 992]}, (1, 1, 1)),
    ],
)
def test_the_published_counts(shape: Any, settings: Any, counts: Any) -> None:
    of = grid(shape, **settings, discard_remainders=True)
    assert of.counts == counts and len(of) == np.prod(counts)


def test_the_counts_of_two_slicers_of_flat_blocks() -> None:
    rows, columns = (grid((64, 64, 64), sizes=sizes) for sizes in ([1, 32, 32], [64, 64, 1]))
    assert len(rows) == 256 and rows.block_shape == (32, 32)
    assert len(columns) == 64 and columns.block_shape == (64, 64)


@pytest.mark.parametrize(
    ("length", "size", "stride", "included", "discarded"),
    [
        (10, 4, 4, 3, 2),
        (8, 4, 4, 2, 2),
        (10, 4, 2, 4, 4),
        (11, 4, 2, 5, 4),
        (3, 4, 4, 1, 0),
        (10, 2, 5, 2, 2),
        (11, 2, 5, 3, 2),
        (1, 1, 1, 1, 1),
    ],
)
def test_remainders(length: int, size: int, stride: int, included: int, discarded: int) -> None:
    settings = {"sizes": [size, 5], "strides": [stride, 5]}
    assert grid((length, 5), **settings).counts[0] == included
    assert grid((length, 5), **settings, discard_remainders=True).counts[0] == discarded


def test_every_voxel_is_in_a_block_and_no_block_is_empty() -> None:
    for length in range(1, 14):
        for size in range(1, 6):
            for stride in range(1, size + 1):
                of = grid((length, 2), sizes=[size, 2], strides=[stride, 2])
                assert of.covered[0] == length
                assert (of.overlaps(0) >= 1).all(), (length, size, stride)
                for number in range(len(of)):
                    rows = of.region(number)[0]
                    assert rows.stop > rows.start
    # One block less would leave something out.
    assert grid((9, 2), sizes=[4, 2], strides=[2, 2]).counts[0] == 4


def test_the_odd_voxel_of_padded_sizes_is_at_the_end() -> None:
    of = grid((4, 6), sizes=[4, 3], padded_sizes=[6, 8])
    assert of.padding == [(1, 1), (2, 3)] and of.block_shape == (6, 8)
    block = cut(np.ones((4, 6), np.float32), of, 1)
    assert block.shape == (1, 6, 8) and block.sum() == 12
    assert block[0, 1:5, 2:5].all()


def test_a_remainder_is_filled_up_before_padding() -> None:
    of = grid((5, 2), sizes=[4, 2], padding=[1, 0])
    assert of.zeros(0) == [(1, 1), (0, 0)] and of.zeros(1) == [(1, 4), (0, 0)]
    volume = np.arange(1, 11, dtype=np.float32).reshape(5, 2)
    assert cut(volume, of, 1)[0, :, 0].tolist() == [0, 9, 0, 0, 0, 0]


SETTINGS: list[dict[str, Any]] = [
    {"sizes": [4, 3, 5]},
    {"sizes": [4, 3, 5], "strides": [2, 3, 1]},
    {"sizes": [4, 3, 5], "padding": [1, 0, 2]},
    {"sizes": [4, 3, 5], "padded_sizes": [5, 6, 8], "strides": [3, 2, 5]},
    {"sizes": [1, 4, 5]},
    {"sizes": [1, 4, 5], "transpose": True},
    {"sizes": [4, 1, 5], "transpose": True, "padding": [1, 0, 2], "strides": [3, 1, 4]},
    {"sizes": [9, 1, 8], "discard_remainders": True},
    {"sizes": [4, 3, 5], "discard_remainders": True},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_blocks_put_back_make_the_volume(settings: dict[str, Any]) -> None:
    volume = np.random.default_rng(1).normal(size=(9, 7, 8)).astype(np.float32)
    of = grid(volume.shape, **settings)
    whole = np.zeros(of.covered, np.float32)
    for number in range(len(of)):
        block = cut(volume, of, number)
        assert block.shape[1:] == of.block_shape
        part = of.restored(block, number)[0]
        for axis, own in enumerate(of.region(number)):
            share = [1, 1, 1]
            share[axis] = -1
            part = part / of.overlaps(axis)[own].reshape(share)
        whole[of.region(number)] += part
    inner = tuple(slice(0, length) for length in of.covered)
    np.testing.assert_allclose(whole, volume[inner], atol=1e-6)
    assert settings.get("discard_remainders") or of.covered == volume.shape


def test_blocks_come_in_the_order_of_their_axes() -> None:
    of = grid((4, 4), sizes=[2, 2])
    assert [tuple(one.start for one in of.region(n)) for n in range(4)] == [
        (0, 0),
        (0, 2),
        (2, 0),
        (2, 2),
    ]


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"sizes": [8, 8], "discard_remainders": True}, r"v\.h5: is 7 x 9 voxels, no block of 8"),
        ({"sizes": [1, 1]}, "blocks of 1 x 1 voxels"),
        ({"sizes": [4, 4], "padding": [2**30, 2**30]}, "at most 4294967296 voxels"),
        ({"sizes": [4, 4, 4], "transpose": True}, "transpose"),
    ],
)
def test_slicers_from_which_nothing_comes(settings: dict[str, Any], found: str) -> None:
    with pytest.raises((InputError, ValueError), match=found):
        checked_grid(Slicer.model_validate(settings), (7, 9), "v.h5")


def test_names() -> None:
    slicers = [Slicer(sizes=[2, 2]), Slicer(sizes=[2, 2], name="a"), Slicer(sizes=[2, 2])]
    assert slicer_names(slicers) == ["slices_1", "a", "slices_3"]
    with pytest.raises(InputError, match="'a' stands twice"):
        slicer_names([slicers[1], slicers[1]])
    for name in ("a/b", ".", "/", "a\0b"):
        with pytest.raises(InputError, match="names no dataset"):
            slicer_names([Slicer(sizes=[2, 2], name=name)])


def test_what_the_log_says() -> None:
    of = grid((78, 590, 1006), sizes=[64, 64, 256], strides=[64, 64, 17], discard_remainders=True)
    assert slicing_lines(of, "samples", "input", "test.h5", "HDF5") == [
        "Slicing dataset 'input' from HDF5 file: test.h5",
        "   Full size: [78, 590, 1006]",
        "   Slicer: samples",
        "      Sizes       : [64, 64, 256]",
        "      Padding     : [(0,0)(0,0)(0,0)]",
        "      Padded sizes: [64, 64, 256]",
        "      Strides     : [64, 64, 17]",
        "      Remainders  : discarded",
        "      Transpose   : false",
        "      Num samples : 405",
    ]
