"""Transforms: image and mask move together, each image by its own numbers, only in training."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from trainer.config import Data
from trainer.data.transforms import BatchTransform, resize_of
from trainer.errors import InputError

HEIGHT, WIDTH, IMAGES = 32, 48, 64


def transform(*shared: dict[str, Any], **sides: Any) -> BatchTransform:
    return BatchTransform(Data.model_validate({"transforms": list(shared), **sides}))


def seeded(number: int = 0) -> Generator:
    return Generator().manual_seed(number)


def disc(row: float, column: float, radius: float, count: int = IMAGES) -> Tensor:
    """`count` equal masks (n, 1, H, W) of 0 and 255; the centre is measured in pixels."""
    rows, columns = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    inside = (rows + 0.5 - row) ** 2 + (columns + 0.5 - column) ** 2 < radius**2
    return (inside * 255).to(torch.uint8).expand(count, 1, HEIGHT, WIDTH)


def noise(count: int = 4) -> tuple[Tensor, Tensor]:
    generator = seeded(9)
    images = torch.randint(0, 256, (count, 3, HEIGHT, WIDTH), generator=generator)
    masks = 255 * torch.randint(0, 2, (count, 1, HEIGHT, WIDTH), generator=generator)
    return images.to(torch.uint8), masks.to(torch.uint8)


def centres(masks: Tensor) -> Tensor:
    """(n, 2) offsets (down, right) of the mass from the middle of the image, in pixels."""
    mass = masks[:, 0].double()
    rows = (mass.sum(2) * (torch.arange(HEIGHT) + 0.5 - HEIGHT / 2)).sum(1)
    columns = (mass.sum(1) * (torch.arange(WIDTH) + 0.5 - WIDTH / 2)).sum(1)
    return torch.stack([rows, columns], dim=1) / mass.sum((1, 2))[:, None]


ALL_RANDOM: list[dict[str, Any]] = [
    {"random_horizontal_flip": 0.5},
    {"random_vertical_flip": 0.5},
    {"random_rotate": 30},
    {"random_zoom": 0.3},
    {"random_brightness": 0.2},
    {"random_contrast": 0.2},
]


def test_nothing_random_changes_nothing() -> None:
    images, masks = noise()
    fixed = transform({"resize": [WIDTH, HEIGHT]}, {"normalize": {"mean": 0.5}})
    x, y = fixed.augmented(images, masks, seeded())
    assert torch.equal(x, images / 255 - 0.5) and torch.equal(y, masks / 255 - 0.5)
    assert torch.equal(x, fixed.inputs(images)) and torch.equal(y, fixed.targets(masks))


def test_random_ones_act_in_training_only() -> None:
    images, masks = noise()
    random = transform(*ALL_RANDOM)
    assert torch.equal(random.inputs(images), images / 255)
    assert torch.equal(random.targets(masks), masks / 255)
    assert not torch.allclose(random.augmented(images, masks, seeded())[0], images / 255)


@pytest.mark.parametrize(("name", "axis"), [("horizontal", 3), ("vertical", 2)])
def test_a_flip_is_exact(name: str, axis: int) -> None:
    images, masks = noise()
    x, y = transform({f"random_{name}_flip": 1.0}).augmented(images, masks, seeded())
    torch.testing.assert_close(x, images.flip(axis) / 255, atol=1e-4, rtol=0)
    assert torch.equal(y, masks.flip(axis) / 255)


def test_a_flip_has_its_probability() -> None:
    masks = disc(8, 8, 5, 400)
    _, y = transform({"random_horizontal_flip": 0.25}).augmented(masks, masks, seeded())
    flipped = int((centres(y)[:, 1] > 0).sum())
    assert 70 <= flipped <= 130


def test_image_and_mask_move_together() -> None:
    masks = disc(12, 18, 8)
    x, y = transform(*ALL_RANDOM[:4]).augmented(masks.expand(-1, 3, -1, -1), masks, seeded())
    seen = x[:, :1] > 0.5
    assert ((seen != (y > 0.5)).double().mean((1, 2, 3)) < 0.02).all()
    assert ((y > 0.5) != (masks > 0)).double().mean() > 0.1
    assert set(y.unique().tolist()) == {0.0, 1.0}


def test_every_image_has_its_own_numbers_from_the_generator() -> None:
    images, masks = disc(10, 14, 7, 8).expand(-1, 3, -1, -1), disc(10, 14, 7, 8)
    random = transform(*ALL_RANDOM)
    x, y = random.augmented(images, masks, seeded(1))
    for first in range(8):
        for second in range(first):
            assert not torch.equal(x[first], x[second])
    again = random.augmented(images, masks, seeded(1))
    assert torch.equal(x, again[0]) and torch.equal(y, again[1])
    assert not torch.equal(x, random.augmented(images, masks, seeded(2))[0])


def test_a_rotation_keeps_shapes_in_an_image_that_is_not_square() -> None:
    masks = disc(HEIGHT / 2, WIDTH / 2, 12)
    _, y = transform({"random_rotate": 180}).augmented(masks, masks, seeded())
    inside = disc(HEIGHT / 2, WIDTH / 2, 16) > 0  # beyond, the border mirrors the disc
    wrong = ((y > 0.5) != (masks > 0)) & inside
    assert wrong.sum((1, 2, 3)).max() < 0.1 * math.pi * 12**2


def test_a_rotation_has_its_angle_in_pixels() -> None:
    masks = disc(HEIGHT / 2, WIDTH / 2 + 9, 5)
    _, y = transform({"random_rotate": 40}).augmented(masks, masks, seeded())
    down, right = centres(y).unbind(1)
    angles = torch.rad2deg(torch.atan2(down, right))
    np.testing.assert_allclose(torch.hypot(down, right), 9, atol=0.3)
    assert angles.min() < -25 and angles.max() > 25 and angles.abs().max() < 42


def test_a_zoom_enlarges_by_up_to_its_share() -> None:
    masks = disc(HEIGHT / 2, WIDTH / 2, 8)
    _, y = transform({"random_zoom": 0.3}).augmented(masks, masks, seeded())
    areas = (y > 0.5).sum((1, 2, 3)) / (masks > 0).sum((1, 2, 3))
    assert 0.95 < areas.min() < 1.15
    assert 1.7 < areas.max() < 1.05 / 0.7**2


def test_normalize_in_order() -> None:
    images, masks = noise()
    both = transform(
        {"normalize": {"mean": 0.5, "std": 0.25}},
        input_transforms=[{"normalize": {"std": 2.0}}],
    )
    torch.testing.assert_close(both.inputs(images), (images / 255 - 0.5) / 0.25 / 2)
    torch.testing.assert_close(both.targets(masks), (masks / 255 - 0.5) / 0.25)


def test_normalize_by_one_255th_gives_the_stored_values_back() -> None:
    labels = torch.tensor([0, 1, 2], dtype=torch.uint8).view(1, 1, 1, 3)
    back = transform({"normalize": {"std": 0.003921568}}).targets(labels)
    torch.testing.assert_close(back.flatten(), torch.tensor([0.0, 1.0, 2.0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["random_brightness", "random_contrast"])
@pytest.mark.parametrize("side", ["transforms", "input_transforms"])
def test_light_touches_the_input_only(name: str, side: str) -> None:
    images, masks = noise()
    light = BatchTransform(Data.model_validate({side: [{name: 0.3}]}))
    x, y = light.augmented(images, masks, seeded())
    assert torch.equal(y, masks / 255)
    assert not torch.allclose(x, images / 255)
    assert x.min() >= 0 and x.max() <= 1


def test_brightness_adds_and_contrast_scales_about_the_mean() -> None:
    half = torch.full((IMAGES, 3, 4, 4), 128, dtype=torch.uint8)
    masks = half[:, :1]
    x, _ = transform({"random_brightness": 0.2}).augmented(half, masks, seeded())
    added = x.flatten(1) - 128 / 255
    assert (added.amax(1) - added.amin(1)).max() < 1e-6
    assert added.min() < -0.15 and added.max() > 0.15 and added.abs().max() <= 0.2001

    x, _ = transform({"random_contrast": 0.5}).augmented(half, masks, seeded())
    torch.testing.assert_close(x, half / 255)
    half[:, :, :2] = 100
    x, _ = transform({"random_contrast": 0.5}).augmented(half, masks, seeded())
    torch.testing.assert_close(x.mean((1, 2, 3)), torch.full((IMAGES,), 114 / 255))
    factors = (x[:, 0, 3, 0] - x[:, 0, 0, 0]) / (28 / 255)
    assert 0.5 <= factors.min() < 0.6 and 1.4 < factors.max() <= 1.5


def test_moving_one_side_only_is_refused() -> None:
    with pytest.raises(InputError, match="random_rotate on one side only"):
        transform(input_transforms=[{"random_rotate": 5}])


@pytest.mark.parametrize(
    ("content", "size"),
    [
        ({}, None),
        ({"transforms": [{"resize": [8, 16]}]}, (8, 16)),
        ({"transforms": [{"resize": [8, 8]}], "input_transforms": [{"resize": [8, 8]}]}, (8, 8)),
    ],
)
def test_the_size_is_that_of_the_resize(content: Any, size: Any) -> None:
    assert resize_of(Data.model_validate(content)) == size


def test_a_resize_of_one_side_only_is_refused() -> None:
    with pytest.raises(InputError, match="one side only"):
        resize_of(Data.model_validate({"target_transforms": [{"resize": [8, 8]}]}))
