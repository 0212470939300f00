"""From a fingerprint to a base configuration."""

from __future__ import annotations

import math
from typing import Any

import pytest

from trainer.config import parse_config
from trainer.networks.description import parse_network
from trainer.prepare.volume_plan import (
    batch_for,
    intensity,
    network_for,
    patch_for,
    plan,
    pooling,
    step_bytes,
    target_spacing,
)

GIB = 2.0**30


def facts(
    shape: tuple[float, ...],
    spacing: tuple[float, ...],
    channels: tuple[str, ...] = ("MRI",),
    cases: int = 100,
    tenth: tuple[float, ...] | None = None,
) -> dict[str, Any]:
    """What a fingerprint says of cases that are all alike."""
    numbers = {"percentile_00_5": -50.0, "median": 90.0, "percentile_99_5": 250.0}
    return {
        "channels": list(channels),
        "classes": ["background", "a", "b"],
        "median_shape": list(shape),
        "median_spacing_mm": list(spacing),
        "spacing_mm_percentile_10": list(tenth or spacing),
        "spacing_known": True,
        "intensities": [{**numbers, "mean": 100.0, "std": 40.0} for _ in channels],
        "cases": [{"part": "train"}] * cases,
    }


def test_the_target_spacing_is_the_median() -> None:
    assert target_spacing(facts((1, 1, 1), (0.8, 0.8, 1.5))) == (0.8, 0.8, 1.5)


def test_a_coarse_axis_gets_its_10th_percentile_but_is_not_the_finest() -> None:
    coarse = facts((1, 1, 1), (0.8, 0.8, 5.0), tenth=(0.6, 0.6, 2.5))
    assert target_spacing(coarse) == (0.8, 0.8, 2.5)
    finer = facts((1, 1, 1), (0.8, 0.9, 5.0), tenth=(0.6, 0.6, 0.5))
    assert target_spacing(finer) == (0.8, 0.9, 0.9)
    three_times = facts((1, 1, 1), (1.0, 1.0, 3.0), tenth=(1, 1, 1))
    assert target_spacing(three_times) == (1.0, 1.0, 3.0)


def test_ct_is_normalized_by_the_foreground_of_the_set() -> None:
    assert intensity(facts((1, 1, 1), (1, 1, 1), ("CT",))) == {
        "clip": (-50.0, 250.0),
        "normalization": "constant",
        "mean": (100.0,),
        "std": (40.0,),
    }
    for channels in (("MRI",), ("CT", "PET"), ("T1", "FLAIR")):
        made = intensity(facts((1, 1, 1), (1, 1, 1), channels))
        assert made == {"normalization": "case"}


def test_axes_are_halved_alike_where_spacings_are() -> None:
    assert pooling((64, 64, 64), (1, 1, 1)) == [(2, 2, 2)] * 4
    assert pooling((128, 128, 128), (1, 1, 1)) == [(2, 2, 2)] * 5
    assert pooling((4, 4, 4), (1, 1, 1)) == []


def test_a_coarse_axis_is_halved_later() -> None:
    assert pooling((128, 128, 16), (1, 1, 4)) == [
        *((2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2), (2, 2, 1))
    ]


@pytest.mark.parametrize("memory", [0.5, 2, 8, 80])
@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((35, 50, 35), (1, 1, 1)), ((512, 512, 100), (0.8, 0.8, 5)), ((240, 240, 155), (1, 1, 1))],
)
def test_crops_fit_into_memory_and_into_the_network(
    shape: tuple[int, ...], spacing: tuple[float, ...], memory: float
) -> None:
    patch, strides = patch_for(shape, spacing, memory * GIB)
    assert 2 * step_bytes(patch, strides) <= memory * GIB / 2
    for axis in range(3):
        factor = math.prod(step[axis] for step in strides)
        assert patch[axis] % factor == 0 and patch[axis] // factor >= 2
        assert patch[axis] < shape[axis] + factor, "no larger than the cases need"


def test_more_memory_gives_larger_crops_and_batches() -> None:
    small, _ = patch_for((240, 240, 155), (1, 1, 1), 1 * GIB)
    large, strides = patch_for((240, 240, 155), (1, 1, 1), 16 * GIB)
    assert math.prod(small) < math.prod(large) <= 1.3 * 128**3
    batches = [batch_for(large, strides, 1e12, gib * GIB) for gib in (16, 32, 10_000)]
    assert batches[0] < batches[1] < batches[2] == 12
    assert batch_for(large, strides, 100.0, 1e15) == 2, "a batch is a small part of the data"


def test_the_plan_is_a_configuration_of_our_language() -> None:
    for shape, spacing, network in (
        ((35, 50, 35), (1, 1, 1), "unet"),
        ((256, 256, 40), (1, 1, 6), "monai.DynUNet"),
    ):
        made = plan(facts(shape, spacing, cases=50), 4 * GIB, orientation="RAS")
        config = parse_config(made.config, "config.json")
        assert config.data.patches and config.data.patches.per_case == 5
        described = parse_network(made.layers, "layers.json")
        assert described.network == network and described.dimensions == 3
        assert made.preparation.orientation == "RAS" and made.preparation.spacing_mm


def test_a_cpu_gets_smaller_crops_and_a_faster_network() -> None:
    base = facts((240, 240, 155), (1, 1, 1))
    for gpu in (True, False):
        made = plan(base, 64 * GIB, gpu=gpu)
        voxels = math.prod(made.config["neural_network"]["data"]["patches"]["size"])
        assert (voxels > 100**3) == gpu
        assert (made.layers["network"] == "monai.UNet") != gpu


def test_a_reshape_and_a_crop_change_the_sizes_that_are_planned_for() -> None:
    base = facts((240, 240, 155), (1, 1, 1))
    crop = ((0, 0), (0, 0), (2, 1))
    made = plan(base, 1e15, None, crop=crop)
    assert made.preparation.crop == crop and made.preparation.spacing_mm is None
    reshaped = plan(base, 1e15, "auto", (40, 40, 40))
    assert reshaped.preparation.shape == (40, 40, 40)
    assert max(reshaped.config["neural_network"]["data"]["patches"]["size"]) <= 48


@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize(
    ("patch", "spacing"), [((32, 32, 32), (1, 1, 1)), ((64, 64, 12), (1, 1, 5))]
)
def test_the_network_takes_the_crops(
    patch: tuple[int, ...], spacing: tuple[float, ...], gpu: bool
) -> None:
    import torch

    from trainer.networks.build import build

    described = parse_network(
        {**network_for(pooling(patch, spacing), gpu), "in_channels": 2, "classes": 3}, "layers.json"
    )
    network = build(described).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 2, *patch)).shape == (1, 3, *patch)


@pytest.mark.parametrize(
    ("shape", "spacing", "memory"),
    [((3, 512, 512), (5, 0.7, 0.7), 0.5), ((10, 256, 256), (10, 1.5, 1.5), 0.1)],
)
def test_thin_scans_in_little_memory_end_with_a_patch(
    shape: tuple[int, ...], spacing: tuple[float, ...], memory: float
) -> None:
    patch, _ = patch_for(shape, spacing, memory * GIB)
    assert all(side >= 1 for side in patch)
