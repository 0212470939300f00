"""Transforms: image and mask move together, each image by its own numbers, only in training."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from trainer.config import COLOUR_CONVERSIONS, Data
from trainer.data.colours import channels_of, converted
from trainer.data.transforms import BatchTransform, Draw, channels_read, reading_steps, size_of
from trainer.errors import InputError

HEIGHT, WIDTH, IMAGES = 32, 48, 64


def transform(*shared: dict[str, Any], **sides: Any) -> BatchTransform:
    return BatchTransform(Data.model_validate({"transforms": list(shared), **sides}))


def seeded(number: int = 0) -> Generator:
    return Generator().manual_seed(number)


def augmented(
    of: BatchTransform, images: Tensor, masks: Tensor, epoch: int = 0
) -> tuple[Tensor, Tensor]:
    return of.augmented(images, masks, torch.arange(len(images)), epoch, seed=0)


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
    x, y = augmented(fixed, images, masks)
    assert torch.equal(x, images / 255 - 0.5) and torch.equal(y, masks / 255 - 0.5)
    assert torch.equal(x, fixed.inputs(images)) and torch.equal(y, fixed.targets(masks))


def test_random_ones_act_in_training_only() -> None:
    images, masks = noise()
    random = transform(*ALL_RANDOM)
    assert torch.equal(random.inputs(images), images / 255)
    assert torch.equal(random.targets(masks), masks / 255)
    assert not torch.allclose(augmented(random, images, masks)[0], images / 255)


@pytest.mark.parametrize(("name", "axis"), [("horizontal", 3), ("vertical", 2)])
def test_a_flip_is_exact(name: str, axis: int) -> None:
    images, masks = noise()
    x, y = augmented(transform({f"random_{name}_flip": 1.0}), images, masks)
    torch.testing.assert_close(x, images.flip(axis) / 255, atol=1e-4, rtol=0)
    assert torch.equal(y, masks.flip(axis) / 255)


def test_a_flip_has_its_probability() -> None:
    masks = disc(8, 8, 5, 400)
    _, y = augmented(transform({"random_horizontal_flip": 0.25}), masks, masks)
    flipped = int((centres(y)[:, 1] > 0).sum())
    assert 70 <= flipped <= 130


def test_image_and_mask_move_together() -> None:
    masks = disc(12, 18, 8)
    x, y = augmented(transform(*ALL_RANDOM[:4]), masks.expand(-1, 3, -1, -1), masks)
    seen = x[:, :1] > 0.5
    assert ((seen != (y > 0.5)).double().mean((1, 2, 3)) < 0.02).all()
    assert ((y > 0.5) != (masks > 0)).double().mean() > 0.1
    assert set(y.unique().tolist()) == {0.0, 1.0}


def test_every_image_has_its_own_numbers_in_every_epoch() -> None:
    images, masks = disc(10, 14, 7, 8).expand(-1, 3, -1, -1), disc(10, 14, 7, 8)
    random = transform(*ALL_RANDOM)
    x, y = augmented(random, images, masks, epoch=1)
    for first in range(8):
        for second in range(first):
            assert not torch.equal(x[first], x[second])
    again = augmented(random, images, masks, epoch=1)
    assert torch.equal(x, again[0]) and torch.equal(y, again[1])
    assert not torch.equal(x, augmented(random, images, masks, epoch=2)[0])


def test_a_rotation_keeps_shapes_in_an_image_that_is_not_square() -> None:
    masks = disc(HEIGHT / 2, WIDTH / 2, 12)
    _, y = augmented(transform({"random_rotate": 180}), masks, masks)
    inside = disc(HEIGHT / 2, WIDTH / 2, 16) > 0  # beyond, the border mirrors the disc
    wrong = ((y > 0.5) != (masks > 0)) & inside
    assert wrong.sum((1, 2, 3)).max() < 0.1 * math.pi * 12**2


def test_a_rotation_has_its_angle_in_pixels() -> None:
    masks = disc(HEIGHT / 2, WIDTH / 2 + 9, 5)
    _, y = augmented(transform({"random_rotate": 40}), masks, masks)
    down, right = centres(y).unbind(1)
    angles = torch.rad2deg(torch.atan2(down, right))
    np.testing.assert_allclose(torch.hypot(down, right), 9, atol=0.3)
    assert angles.min() < -25 and angles.max() > 25 and angles.abs().max() < 42


def test_a_zoom_enlarges_by_up_to_its_share() -> None:
    masks = disc(HEIGHT / 2, WIDTH / 2, 8)
    _, y = augmented(transform({"random_zoom": 0.3}), masks, masks)
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
    x, y = augmented(light, images, masks)
    assert torch.equal(y, masks / 255)
    assert not torch.allclose(x, images / 255)
    assert x.min() >= 0 and x.max() <= 1


def test_brightness_adds_and_contrast_scales_about_the_mean() -> None:
    half = torch.full((IMAGES, 3, 4, 4), 128, dtype=torch.uint8)
    masks = half[:, :1]
    x, _ = augmented(transform({"random_brightness": 0.2}), half, masks)
    added = x.flatten(1) - 128 / 255
    assert (added.amax(1) - added.amin(1)).max() < 1e-6
    assert added.min() < -0.15 and added.max() > 0.15 and added.abs().max() <= 0.2001

    x, _ = augmented(transform({"random_contrast": 0.5}), half, masks)
    torch.testing.assert_close(x, half / 255)
    half[:, :, :2] = 100
    x, _ = augmented(transform({"random_contrast": 0.5}), half, masks)
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
    assert size_of(Data.model_validate(content)) == size


def test_a_resize_of_one_side_only_is_refused() -> None:
    with pytest.raises(InputError, match="one side only"):
        size_of(Data.model_validate({"target_transforms": [{"resize": [8, 8]}]}))


def test_numbers_depend_on_seed_epoch_and_sample_alone() -> None:
    """Not on the batch: its size, its order, who else is in it."""
    images, masks = noise(6)
    random = transform(*ALL_RANDOM, {"jitter_crop": 0.3})
    x, y = random.augmented(images, masks, torch.arange(6) + 40, 3, seed=7)
    for chosen in ([4], [5, 0, 4], [2, 1]):
        alone = random.augmented(
            images[chosen], masks[chosen], torch.tensor(chosen) + 40, 3, seed=7
        )
        torch.testing.assert_close(alone[0], x[chosen])
        assert torch.equal(alone[1], y[chosen])
    for seed, epoch in ((8, 3), (7, 4)):
        other, _ = random.augmented(images, masks, torch.arange(6) + 40, epoch, seed)
        assert all(not torch.allclose(a, b) for a, b in zip(other, x, strict=True))


def test_numbers_are_uniform_and_independent() -> None:
    numbers = Draw(3, 2, torch.arange(20_000), 80).uniform(4).double()
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = torch.stack([torch.histc(column, 20, 0, 1) for column in numbers.unbind(1)])
    assert (counts / 1000 - 1).abs().max() < 0.15  # 5 standard deviations
    other = Draw(3, 3, torch.arange(20_000), 80).uniform(4).double()
    together = torch.cat([numbers, other, Draw(3, 2, torch.arange(20_000), 80).uniform(5)], dim=1)
    correlations = torch.corrcoef(torch.cat([together[:-1], numbers[1:]], dim=1).T)
    assert (correlations - torch.eye(len(correlations))).abs().max() < 0.04


def ramp(width: int, height: int) -> Tensor:
    """(1, 3, H, W): a pixel's column, its row, and nothing; below 256."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([columns, rows, torch.zeros_like(rows)])[None].to(torch.uint8)


def test_rotate_is_clockwise_and_always() -> None:
    image = ramp(8, 8)
    mask = image[:, :1]
    turned = transform({"rotate": 90})
    expected = image.rot90(-1, (2, 3))  # torch turns counter-clockwise
    for x, y in (
        augmented(turned, image, mask),
        turned.evaluated(image, mask, torch.arange(1)),
        (turned.inputs(image), turned.targets(mask)),
    ):
        torch.testing.assert_close(x * 255, expected.float(), atol=1e-3, rtol=0)
        torch.testing.assert_close(y * 255, expected[:, :1].float(), atol=1e-3, rtol=0)


def test_geometric_ones_are_done_in_their_order() -> None:
    """A flip after a turn is not a turn after a flip; sizes follow crops and resizes."""
    image = ramp(8, 8)
    flip, turn = {"random_horizontal_flip": 1.0}, {"rotate": 90}
    first, _ = augmented(transform(flip, turn), image, image[:, :1])
    second, _ = augmented(transform(turn, flip), image, image[:, :1])
    plain = image.float()
    torch.testing.assert_close(first * 255, plain.flip(3).rot90(-1, (2, 3)), atol=1e-3, rtol=0)
    torch.testing.assert_close(second * 255, plain.rot90(-1, (2, 3)).flip(3), atol=1e-3, rtol=0)

    crop = {"center_crop": [5, 4]}
    x, y = augmented(transform({"resize": [8, 8]}, flip, crop), image, image[:, :1])
    assert x.shape == (1, 3, 4, 5) and y.shape == (1, 1, 4, 5)
    middle = plain.flip(3)[:, :, 2:6, 1:6]
    torch.testing.assert_close(x * 255, middle, atol=1e-3, rtol=0)
    halved, _ = augmented(transform({"resize": [8, 8]}, flip, {"resize": [4, 4]}), image, image)
    torch.testing.assert_close(halved[:, 1] * 255, plain[:, 1, ::2, ::2] + 0.5, atol=1e-3, rtol=0)


def test_a_jitter_crop_enlarges_a_part_and_keeps_the_size() -> None:
    images = disc(HEIGHT / 2, WIDTH / 2, 8)
    _, y = augmented(transform({"jitter_crop": 0.4}), images, images)
    areas = (y > 0.5).sum((1, 2, 3)) / (images > 0).sum((1, 2, 3))
    assert y.shape == images.shape
    assert areas.min() > 0.95 and 1.5 < areas.max() < 1.05 / 0.6**2
    away = centres(y)
    assert away[:, 0].abs().max() > 2 and away[:, 1].abs().max() > 3, "sides have their own numbers"


@pytest.mark.parametrize(
    ("content", "steps", "size"),
    [
        ([], [], None),
        ([{"resize": [8, 6]}], [("resize", (8, 6))], (8, 6)),
        (
            [{"center_crop": [9, 9]}, {"resize": [8, 6]}, {"rotate": 5}, {"center_crop": [4, 2]}],
            [("center_crop", (9, 9)), ("resize", (8, 6))],
            (4, 2),
        ),
        ([{"random_rotate": 5}, {"resize": [8, 6]}], [("resize", (8, 6))], (8, 6)),
        ([{"random_rotate": 5}, {"center_crop": [8, 6]}], [], (8, 6)),
    ],
)
def test_what_is_done_at_reading(content: Any, steps: Any, size: Any) -> None:
    data = Data.model_validate({"transforms": content})
    assert reading_steps(data) == steps
    assert size_of(data, (20, 20)) == (size or (20, 20))


def test_input_transforms_alone_where_targets_are_labels() -> None:
    content = {"input_transforms": [{"resize": [8, 6]}], "target_type": "labels"}
    assert size_of(Data.model_validate(content)) == (8, 6)


def test_random_patches_part_an_image() -> None:
    images, _ = noise(5)
    patches = transform({"random_patches": {"number": 4, "size": 9}})
    x, y = augmented(patches, images, images)
    torch.testing.assert_close(x + y, images / 255)
    cut = (y != 0).any(1)
    assert (x.amax(1)[cut] == 0).all()
    areas = cut.sum((1, 2))
    assert areas.min() > 9 * 9 and areas.max() <= 4 * 9 * 9
    later, _ = augmented(patches, images, images, epoch=1)
    assert all(not torch.equal(a, b) for a, b in zip(x, later, strict=True))
    one = transform({"random_patches": {"number": 1, "size": 9}})
    rows, columns = (augmented(one, images, images)[1][:, 0] != 0).nonzero()[:, 1:].unbind(1)
    assert rows.max() < HEIGHT and columns.max() < WIDTH


def test_an_evaluation_has_the_patches_of_epoch_zero() -> None:
    images, _ = noise(3)
    patches = transform({"random_patches": {"number": 2, "size": 5}})
    x, y = patches.evaluated(images, images, torch.arange(3))
    again, _ = patches.evaluated(images[2:], images[2:], torch.tensor([2]))
    assert y is not None
    torch.testing.assert_close(x + y, images / 255)
    assert torch.equal(again[0], x[2])
    assert torch.equal(patches.evaluated(images, None, torch.arange(3))[0], images / 255)


def test_patches_are_for_networks_that_give_images() -> None:
    images, masks = noise(2)
    content = {"transforms": [{"random_patches": {"number": 1, "size": 3}}]}
    with pytest.raises(InputError, match="3 channels, but 1 outputs"):
        augmented(BatchTransform(Data.model_validate(content)), images, masks)
    for task, targets in (("labels", torch.tensor([0, 1])), ("classes", masks)):
        of = BatchTransform(Data.model_validate(content), task)
        with pytest.raises(InputError, match=f"the targets are {task}"):
            augmented(of, images, targets)
        assert torch.equal(of.evaluated(images, None, torch.arange(2))[0], images / 255)


def test_patches_larger_than_the_image() -> None:
    images, _ = noise(1)
    with pytest.raises(InputError, match="48x32 pixels"):
        augmented(transform({"random_patches": {"number": 1, "size": 33}}), images, images)


def test_class_numbers_stay_what_the_reading_made_of_them() -> None:
    masks = torch.tensor([0, 1, 2, 5], dtype=torch.uint8).view(1, 1, 2, 2)
    scaled = Data.model_validate({"transforms": [{"normalize": {"std": 0.003921568}}]})
    for data in (Data(), scaled):
        assert BatchTransform(data, "classes").targets(masks).flatten().tolist() == [0, 1, 2, 5]


def test_labels_and_arrays_stay_what_they_are() -> None:
    labels = BatchTransform(Data.model_validate({"target_type": "labels"}), "labels")
    _, y = labels.augmented(noise(3)[0], torch.tensor([2, 0, 1]), torch.arange(3), 1, 0)
    assert y.tolist() == [2, 0, 1] and y.dtype == torch.int64
    arrays = BatchTransform(Data.model_validate({"type": "hdf5"}), "classes")
    values = torch.tensor([[[-3.5, 400.0]]])
    x, y = arrays.augmented(values, values, torch.arange(1), 1, 0)
    assert torch.equal(x, values) and torch.equal(y, values)


def test_the_order_of_colours() -> None:
    """Red first for our own networks, blue first for Keras', unless converted."""
    images, masks = noise(1)
    rgb, bgr = images / 255, images.flip(1) / 255
    converts = Data.model_validate({"input_transforms": [{"convert_color": "BGR2RGB"}]})
    assert torch.equal(BatchTransform(Data(), order="RGB").inputs(images), rgb)
    assert torch.equal(BatchTransform(Data(), order="BGR").inputs(images), bgr)
    for order in ("RGB", "BGR"):
        made = BatchTransform(converts, order=order).inputs(images)
        assert torch.equal(made, rgb)
    keras = BatchTransform(Data(), "channels", "BGR")
    assert torch.equal(keras.targets(images), bgr)
    assert torch.equal(keras.plain(keras.inputs(images)), rgb)
    grey = BatchTransform(Data(), order="BGR").inputs(masks)
    assert torch.equal(grey, masks / 255)


@pytest.mark.parametrize("name", COLOUR_CONVERSIONS)
def test_colours_are_those_of_opencv(name: str) -> None:
    values = np.random.default_rng(3).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    values[:3] = values[:3, :, :1]  # grey ones
    values[3, :3] = np.array([[0, 0, 0], [255, 255, 255], [255, 0, 0]])
    takes, gives = channels_of(name)
    values = values[..., 0] if takes == 1 else values
    expected = cv2.cvtColor(values, getattr(cv2, f"COLOR_{name}")).astype(np.float32)
    x = torch.from_numpy(values.reshape(40, 50, takes).transpose(2, 0, 1))[None] / 255
    found = converted(x, name)[0].permute(1, 2, 0).numpy() * 255
    difference = np.abs(found - expected.reshape(40, 50, gives))
    if gives == 3 and name.endswith("HSV"):
        difference[..., 0] = np.minimum(difference[..., 0], 180 - difference[..., 0])
    assert difference.max() < 1.01


@pytest.mark.parametrize(
    ("names", "channels", "read"),
    [
        ([], 3, 3),
        (["BGR2RGB"], 3, 3),
        (["BGR2GRAY"], 1, 3),
        (["GRAY2BGR", "BGR2HSV"], 3, 1),
    ],
)
def test_channels_that_are_read(names: list[str], channels: int, read: int) -> None:
    data = Data.model_validate({"transforms": [{"convert_color": name} for name in names]})
    assert channels_read(data, channels) == read


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["BGR2GRAY"], "BGR2GRAY gives 1 channels, the network takes 3"),
        (["BGR2GRAY", "BGR2RGB"], "BGR2RGB on images of 1 channels"),
    ],
)
def test_conversions_that_do_not_fit(names: list[str], found: str) -> None:
    data = Data.model_validate({"transforms": [{"convert_color": name} for name in names]})
    with pytest.raises(InputError, match=found):
        channels_read(data, 3)
