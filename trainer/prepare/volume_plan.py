"""From a fingerprint to a base configuration: spacing, intensities, patch, batch and network.

    planned = plan(fingerprint, memory_bytes=8 * 2**30)
    planned.preparation, planned.config, planned.layers

The rules are those of nnU-Net (Isensee et al., Nature Methods 2021, supplement): the median
spacing, but the 10th percentile along an axis that is more than three times coarser than the
others; the largest patch whose training fits into memory; halvings until an axis has fewer than 8
voxels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from trainer.data.volumes.preparation import Preparation

COARSER = 3.0
"""An axis whose spacing is so many times that of the next coarse one is treated apart."""

ANISOTROPIC = 2.0
"""An axis is halved as soon as its spacing is less than so many times the finest one."""

LEAST_SIDE = 4
"""Voxels of each halved axis at the lowest level."""

MOST_DEPTH = 5
MOST_WIDTH = 320
FIRST_WIDTH = 16
"""Channels of the first level."""

MOST_PATCH = 128**3
MOST_PATCH_ON_CPU = 80**3
BATCH = 2
LARGEST_BATCH = 12
MEMORY_SHARE = 0.5
"""Of the memory, for the values that a training step keeps; the rest is for torch and the data."""

VALUES_KEPT = 15
"""32-bit values that a step keeps for each voxel and channel of a level: convolutions, their
normalizations and activations on the way down and up, with gradients. Two crops of 96x96x96 took
2.1 GiB on a CPU with the network of 5.6 million parameters that is planned for them."""

CROPS_PER_EPOCH = 250
EPOCHS = 100


class Plan(NamedTuple):
    """What is derived: the preparation of the cases, config.json, and layers.json."""

    preparation: Preparation
    config: dict[str, Any]
    layers: dict[str, Any]


def target_spacing(fingerprint: dict[str, Any]) -> tuple[float, ...]:
    """Millimetres along each axis that all cases are brought to."""
    median = list(fingerprint["median_spacing_mm"])
    coarse = max(range(3), key=lambda axis: median[axis])
    others = max(mm for axis, mm in enumerate(median) if axis != coarse)
    if median[coarse] > COARSER * others:
        # Interpolation over thick slices makes artefacts, so more cases keep their own slices.
        median[coarse] = max(fingerprint["spacing_mm_percentile_10"][coarse], others)
    return tuple(median)


def intensity(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """Keys of the preparation: CT by the foreground of the whole set, others by each case."""
    channels, facts = fingerprint["channels"], fingerprint["intensities"]
    if not facts or any(name.lower() != "ct" for name in channels):
        return {"normalization": "case"}
    low = min(one["percentile_00_5"] for one in facts)
    high = max(one["percentile_99_5"] for one in facts)
    if low >= high:
        return {"normalization": "case"}
    return {
        "clip": (low, high),
        "normalization": "constant",
        "mean": tuple(one["mean"] for one in facts),
        "std": tuple(max(one["std"], 1e-6) for one in facts),
    }


def pooling(patch: Sequence[int], spacing: Sequence[float]) -> list[tuple[int, ...]]:
    """The strides (1 or 2 an axis) of each halving, the first one first.

    An axis is halved while it keeps 4 voxels, and from when its spacing is near the finest one.
    """
    sides, steps, found = list(patch), list(spacing), []
    for _ in range(MOST_DEPTH):
        open_axes = [axis for axis in range(3) if sides[axis] >= 2 * LEAST_SIDE]
        if not open_axes:
            break
        finest = min(steps[axis] for axis in open_axes)
        strides = tuple(
            2 if axis in open_axes and steps[axis] < ANISOTROPIC * finest else 1
            for axis in range(3)
        )
        sides = [-(-side // stride) for side, stride in zip(sides, strides, strict=True)]
        steps = [mm * stride for mm, stride in zip(steps, strides, strict=True)]
        found.append(strides)
    return found


def widths(depth: int) -> list[int]:
    """Channels of each level, twice as many in each but at most 320."""
    return [min(MOST_WIDTH, FIRST_WIDTH * 2**level) for level in range(depth + 1)]


def step_bytes(patch: Sequence[int], strides: Sequence[Sequence[int]]) -> int:
    """What a training step keeps for one patch, in bytes, about."""
    voxels, total = math.prod(patch), 0.0
    for level, width in enumerate(widths(len(strides))):
        total += voxels * width * VALUES_KEPT * 4
        if level < len(strides):
            voxels //= math.prod(strides[level])
    return int(total)


def _fitted(sides: Sequence[float], spacing: Sequence[float]) -> tuple[list[int], list[Any]]:
    """A patch near `sides` whose axes can be halved as planned, and its strides."""
    patch = [max(1, math.ceil(side - 1e-6)) for side in sides]
    for _ in range(MOST_DEPTH + 1):
        strides = pooling(patch, spacing)
        factors = [math.prod(step[axis] for step in strides) for axis in range(3)]
        even = [
            max(1, -(-side // factor)) * factor for side, factor in zip(patch, factors, strict=True)
        ]
        if even == patch:
            break
        patch = even
    return patch, strides


def patch_for(
    shape: Sequence[float],
    spacing: Sequence[float],
    memory_bytes: float,
    most_voxels: int = MOST_PATCH,
) -> tuple[list[int], list[Any]]:
    """The size of crops of cases of the median `shape`, in voxels, and the strides of the network.

    It has the field of view of a cube in millimetres as far as cases do, and two crops fit.
    """
    side_mm = (most_voxels * math.prod(spacing)) ** (1 / 3)
    sides = [min(full, max(1.0, side_mm / mm)) for full, mm in zip(shape, spacing, strict=True)]
    while True:
        patch, strides = _fitted(sides, spacing)
        least = all(side <= 2 * LEAST_SIDE for side in patch)
        if least or step_bytes(patch, strides) * BATCH <= memory_bytes * MEMORY_SHARE:
            return patch, strides
        longer = [axis for axis in range(3) if sides[axis] > LEAST_SIDE]
        if not longer:
            return patch, strides
        longest = max(longer, key=lambda axis: sides[axis] / shape[axis])
        sides[longest] = max(LEAST_SIDE, sides[longest] * 0.9)


def batch_for(
    patch: Sequence[int], strides: Sequence[Sequence[int]], voxels: float, memory_bytes: float
) -> int:
    """Crops in a batch: what fits, but no more than a twentieth of the data at once, 2 to 12."""
    fits = int(memory_bytes * MEMORY_SHARE / max(1, step_bytes(patch, strides)))
    enough = int(voxels * 0.05 / math.prod(patch))
    return max(BATCH, min(fits, max(BATCH, enough), LARGEST_BATCH))


def prepared_shape(fingerprint: dict[str, Any], spacing: Sequence[float] | None) -> list[float]:
    """The median size after resampling, in voxels."""
    own = fingerprint["median_spacing_mm"]
    factors = [a / b for a, b in zip(own, spacing or own, strict=True)]
    return [n * factor for n, factor in zip(fingerprint["median_shape"], factors, strict=True)]


def plan(
    fingerprint: dict[str, Any],
    memory_bytes: float,
    spacing: Sequence[float] | str | None = "auto",
    shape: Sequence[int] | None = None,
    gpu: bool = True,
    **fixed: Any,
) -> Plan:
    """A preparation, a configuration and a network for a data set, to train on a GPU or a CPU.

    `spacing` is given in millimetres, or `auto`, or None: as cases come; `shape` gives every case
    that size instead. `fixed` are further keys of the preparation (orientation, crop, labels), and
    wins over what is derived.
    """
    resampled: Sequence[float] | None = None if isinstance(spacing, str) else spacing
    if spacing == "auto" and not shape and fingerprint["spacing_known"]:
        resampled = target_spacing(fingerprint)
    size = [float(n) for n in shape] if shape else prepared_shape(fingerprint, resampled)
    for axis, ends in enumerate(fixed.get("crop") or () if not shape else ()):
        size[axis] = max(1.0, size[axis] - sum(ends))
    size = [max(n, least) for n, least in zip(size, fixed.get("pad_to") or (1, 1, 1), strict=True)]
    steps = list(resampled or fingerprint["median_spacing_mm"])
    if shape:
        extent = zip(fingerprint["median_shape"], fingerprint["median_spacing_mm"], strict=True)
        steps = [n * mm / new for (n, mm), new in zip(extent, shape, strict=True)]
    most = MOST_PATCH if gpu else MOST_PATCH_ON_CPU
    patch, strides = patch_for(size, steps, memory_bytes, most)
    training = sum(case["part"] == "train" for case in fingerprint["cases"])
    batch = batch_for(patch, strides, math.prod(size) * training, memory_bytes)
    preparation = Preparation.model_validate(
        {
            **intensity(fingerprint),
            "spacing_mm": tuple(resampled) if resampled else None,
            "shape": tuple(shape) if shape else None,
            **fixed,
        }
    )
    config = configuration(patch, batch, max(1, training))
    return Plan(preparation, config, network_for(strides, gpu))


def network_for(strides: Sequence[Sequence[int]], gpu: bool) -> dict[str, Any]:
    """A network file: our U-Net where all axes are halved alike, else MONAI's DynUNet.

    For a CPU MONAI's residual U-Net, which computes little at full size: a quarter of the time a
    crop on two cores. Channels and classes follow from the data.
    """
    if not gpu and strides:
        return {
            "network": "monai.UNet",
            "dimensions": 3,
            "arguments": {
                "channels": widths(len(strides)),
                "strides": [list(step) for step in strides],
                "num_res_units": 2,
            },
            **({"divisor": 2 ** len(strides)} if all(set(s) == {2} for s in strides) else {}),
        }
    if all(set(step) == {2} for step in strides):
        return {
            "network": "unet",
            "dimensions": 3,
            "widths": widths(len(strides)),
            "normalization": "instance",
            "nonlinearity": "leaky_relu",
        }
    steps = [list(step) for step in strides]
    # A kernel does not reach across an axis before that is halved for the first time.
    reached = [
        [3 if any(one[axis] == 2 for one in strides[: level + 1]) else 1 for axis in range(3)]
        for level in range(len(strides))
    ]
    return {
        "network": "monai.DynUNet",
        "dimensions": 3,
        "arguments": {
            "spatial_dims": 3,
            "kernel_size": [reached[0], *reached] if reached else [[3, 3, 3]],
            "strides": [[1, 1, 1], *steps],
            "upsample_kernel_size": steps,
            "filters": widths(len(strides)),
        },
    }


def configuration(patch: Sequence[int], batch: int, training: int) -> dict[str, Any]:
    """config.json, whose paths are relative to the folder of the prepared files.

    The augmentation and the decay of the learning rate are nnU-Net's, in part.
    """
    return {
        "neural_network": {
            "outfile": "out.txt",
            "num_epochs": EPOCHS,
            "layers": "layers.json",
            "checkpoints": {"save": "./model/", "interval": EPOCHS},
            "data": {
                "type": "hdf5",
                "input_path": "train.h5",
                "test_input_path": "validation.h5",
                "batch_size": batch,
                "test_batch_size": batch,
                "patches": {
                    "size": list(patch),
                    "per_case": max(1, round(CROPS_PER_EPOCH / training)),
                    "foreground": 0.33,
                },
                "transforms": [
                    {"random_flip": 0.5},
                    {"random_affine": {"probability": 0.2, "degrees": 15, "zoom": 0.15}},
                ],
                "input_transforms": [
                    {"random_factor": {"probability": 0.15, "low": 0.75, "high": 1.25}},
                    {"random_noise": {"probability": 0.1, "std": 0.1}},
                ],
            },
            "optimizer": {
                "type": "adamw",
                "learning_rate": 0.001,
                "lr_scheduler": {"type": "Polynomial", "power": 0.9, "verbose": False},
            },
            "loss": {"function": "Dice_CE"},
        }
    }
