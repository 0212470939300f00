"""Running statistics measured anew: against numpy, and without a trace of what was there."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import SIDE
from trainer.batch_norm import refresh_batch_norm
from trainer.config import Data
from trainer.data.array_set import ArraySet
from trainer.data.arrays import Sample, blocks_of, list_arrays
from trainer.data.cache import ImageSet
from trainer.data.folders import pair
from trainer.data.transforms import BatchTransform


@pytest.fixture
def images(data: Path) -> ImageSet:
    pairs, _ = pair(data / "train/inputs", data / "train/targets")
    return ImageSet(pairs, 3, (SIDE, SIDE))


def test_statistics_are_those_of_the_images(images: ImageSet) -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5))
    network[0].running_mean.fill_(9.0)
    refresh_batch_norm(network, images, BatchTransform(Data()), torch.device("cpu"), len(images))
    pixels = images.batch(torch.arange(len(images)))[0].numpy().astype(np.float64) / 255
    mean, variance = pixels.mean(axis=(0, 2, 3)), pixels.var(axis=(0, 2, 3), ddof=1)
    assert np.allclose(network[0].running_mean.numpy(), mean, atol=1e-6)
    assert np.allclose(network[0].running_var.numpy(), variance, atol=1e-6)


def test_nothing_else_changes_and_nothing_is_random(images: ImageSet) -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Dropout(0.5))
    weights = [p.clone() for p in network.parameters()]
    network[1].num_batches_tracked.fill_(41)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        refresh_batch_norm(network, images, BatchTransform(Data()), torch.device("cpu"), 3)
        found.append(network[1].running_var.clone())
    assert torch.equal(*found)
    assert int(network[1].num_batches_tracked) == 41 and network[1].momentum == 0.1
    assert all(torch.equal(a, b) for a, b in zip(weights, network.parameters(), strict=True))


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batches_of_one_image_are_measured_too(images: ImageSet, batch_size: int) -> None:
    network = nn.Sequential(nn.BatchNorm2d(3))
    refresh_batch_norm(network, images, BatchTransform(Data()), torch.device("cpu"), batch_size)
    mean = images.batch(torch.arange(len(images)))[0].float().mean(dim=(0, 2, 3)) / 255
    assert network[0].running_mean.tolist() == pytest.approx(mean.tolist(), rel=0.2)


def test_blocks_of_different_slicers_are_not_mixed(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = np.random.default_rng(0).normal(3, 1, (8, 8))
    slicers = [{"sizes": [4, 4]}, {"sizes": [8, 2]}]
    data = Data(type="hdf5", input_path=str(tmp_path / "x.h5"), slicers=slicers)
    blocks = blocks_of([Sample(one) for one in list_arrays(tmp_path / "x.h5", "hdf5")], data, print)
    samples = ArraySet(blocks, data, 1, 2)
    network = nn.Sequential(nn.BatchNorm2d(1))
    refresh_batch_norm(network, samples, BatchTransform(data), torch.device("cpu"), 3)
    assert network[0].running_mean.item() == pytest.approx(3, abs=0.5)
