"""What is done to images: at reading, and on the device to a batch.

A list of transforms is done in its order, with three exceptions that change nothing of what it
asks for but make it fast and plain: the resizes and crops before the first transform that turns,
flips or zooms are done once, at reading; the other geometric ones are one resampling (mirrored at
the border); colours and light come before normalize and random_patches, since they are about
values in [0, 1].

The random ones act in training only. Their numbers follow from seed, epoch and the sample's index
alone: they are the same in a batch of any size, on any device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.config import Data, Transform
from trainer.data.colours import channels_of, converted
from trainer.data.images import Step
from trainer.errors import InputError
from trainer.tasks import Task

SIZING = ("resize", "center_crop")
MOVING = (
    *("jitter_crop", "random_zoom", "rotate", "random_rotate"),
    *("random_horizontal_flip", "random_vertical_flip"),
)
RANDOM = (
    *("jitter_crop", "random_zoom", "random_rotate", "random_patches", "random_brightness"),
    *("random_contrast", "random_horizontal_flip", "random_vertical_flip"),
)
"""Those that act in training alone; of random_patches an evaluation takes those of epoch 0."""

LIGHT = ("convert_color", "random_brightness", "random_contrast")
DRAWS = 8
"""Random numbers that each transform of a list may take; random_patches comes after all."""

Order = Literal["RGB", "BGR"]


def geometric(data: Data) -> list[Transform]:
    """The transforms that move pixels, in order; raises InputError where they part the two sides.

    A resize that is repeated counts once. Targets that are labels have no pixels.
    """

    def of(transforms: list[Transform]) -> list[Transform]:
        found: list[Transform] = []
        for one in transforms:
            if one.name in SIZING + MOVING and not (found and _repeats(one, found[-1])):
                found.append(one)
        return found

    inputs = of([*data.transforms, *data.input_transforms])
    targets = of([*data.transforms, *data.target_transforms])
    if inputs != targets and data.kinds[1] != "labels":
        for name in ("input_transforms", "target_transforms"):
            if odd := of(getattr(data, name)):
                found = f"{odd[0].name} on one side only would part images and masks"
                raise InputError(f"data.{name}", found, "it stands in data.transforms")
    return inputs


def _repeats(one: Transform, before: Transform) -> bool:
    return one.name in SIZING and one == before


def _parted(data: Data) -> tuple[list[Transform], list[Transform]]:
    """The geometric transforms done at reading, and those done on the device.

    A resize that comes after flips and turns is done at reading as well where nothing before it
    makes images of one size: they could not share a batch. A turn then turns the resized image.
    """
    moves = geometric(data)
    first = next((n for n, one in enumerate(moves) if one.name in MOVING), len(moves))
    reading, rest = moves[:first], moves[first:]
    sizing = next((n for n, one in enumerate(rest) if one.name in SIZING), None)
    if not reading and sizing is not None and rest[sizing].name == "resize":
        reading = [rest.pop(sizing)]
    return reading, rest


def reading_steps(data: Data) -> list[Step]:
    """What is done to each image when it is read."""
    return [(one.name, (one.value[0], one.value[1])) for one in _parted(data)[0]]


def size_of(data: Data, own: tuple[int, int] | None = None) -> tuple[int, int] | None:
    """(width, height) of images after all transforms: `own`, their own one, where none sets it."""
    sizes = [one.value for one in geometric(data) if one.name in SIZING]
    return (sizes[-1][0], sizes[-1][1]) if sizes else own


def comparable(data: Data) -> bool:
    """Whether a prediction, resized, lies upon the image in its own size."""
    return not any(one.name in ("center_crop", "rotate") for one in geometric(data))


def channels_read(data: Data, channels: int) -> int:
    """Channels with which images are read, so that a network gets `channels` after convert_color.

    Raises InputError where the conversions give another number.
    """
    names = [t.value for t in (*data.transforms, *data.input_transforms) if _converts(t)]
    now = start = channels_of(names[0])[0] if names else channels
    for name in names:
        takes, gives = channels_of(name)
        if takes != now:
            raise InputError("convert_color", f"{name} on images of {now} channels", f"{takes}")
        now = gives
    if now != channels:
        found = f"{names[-1]} gives {now} channels, the network takes {channels}"
        raise InputError("convert_color", found, "a conversion to what the network takes")
    return start


def _converts(transform: Transform) -> bool:
    return transform.name == "convert_color"


@dataclass(frozen=True)
class _Place:
    """A transform, and its place in the list, which its random numbers depend on."""

    transform: Transform
    place: int

    @property
    def name(self) -> str:
        return self.transform.name

    @property
    def value(self) -> Any:
        return self.transform.value


class BatchTransform:
    """Made of the configuration's transforms; works on batches, wherever they lie.

    `order` is the order of colours that the network takes; files are read as RGB. With
    convert_color the pixels start as BGR, as OpenCV has them.
    """

    def __init__(self, data: Data, task: Task = "foreground", order: Order = "RGB") -> None:
        self.task = task
        self._arrays = data.kinds[0] not in ("images", "mnist")
        moving = [(one.name, id(one)) for one in _parted(data)[1]]
        inputs = [_Place(t, n) for n, t in enumerate((*data.transforms, *data.input_transforms))]
        ids = {number for _, number in moving}
        self._moving = [one for one in inputs if id(one.transform) in ids]
        self._light = [one for one in inputs if one.name in LIGHT]
        self._late = [one for one in inputs if one.name in ("normalize", "random_patches")]
        shared = len(data.transforms)
        self._shared_late = [one for one in self._late if one.place < shared]
        targets = [*data.transforms, *data.target_transforms]
        self._target_scale = [t.value for t in targets if t.name == "normalize"]
        self._target_light = [
            one for one in self._light if _converts(one.transform) and one.place < shared
        ]
        self._mask = data.target_is_mask or task != "channels"
        self._patches = [one for one in self._late if one.name == "random_patches"]
        self._flipped = order == "BGR" or any(_converts(one.transform) for one in self._light)
        self._draws = DRAWS * len(inputs)

    @property
    def random(self) -> bool:
        """Whether an epoch of training differs from another."""
        return any(one.name in RANDOM for one in (*self._moving, *self._light, *self._late))

    def inputs(self, raw: Tensor) -> Tensor:
        """Raw inputs (n, C, …) as the network takes them; nothing random."""
        if self._arrays:
            return raw.float()
        x = self._moved(self._scaled(raw), None, "bilinear")
        return self._finished(self._lit(x, None))

    def targets(self, raw: Tensor) -> Tensor:
        """Raw targets as a loss takes them; nothing random.

        (n, 1, …) in [0, 1] or with class numbers, (n, C, …) of channels, (n,) of labels.
        """
        if self.task == "labels":
            return raw.long().flatten()
        if self._arrays:
            return raw.float()
        return self._target_finished(self._moved(raw.float(), None, self._mode))

    def evaluated(
        self, raw: Tensor, raw_targets: Tensor | None, indices: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """A batch of an evaluation; `indices` (n,) are those of its samples.

        With random_patches and targets: the patches of epoch 0.
        """
        inputs = self.inputs(raw)
        if raw_targets is None:
            return inputs, None
        if self._patches:
            draw = Draw(0, 0, indices.to(raw.device), self._draws)
            return self._with_patches(raw, raw_targets, draw)
        return inputs, self.targets(raw_targets)

    def augmented(
        self, raw: Tensor, raw_targets: Tensor, indices: Tensor, epoch: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        """A batch of a training; `indices` (n,) are those of its samples in the training set."""
        if self._arrays:
            return raw.float(), self.targets(raw_targets)
        draw = Draw(seed, epoch, indices.to(raw.device), self._draws) if self.random else None
        if self._patches and draw:
            return self._with_patches(raw, raw_targets, draw, training=True)
        x = self._moved(self._scaled(raw), draw, "bilinear")
        x = self._finished(self._lit(x, draw))
        if self.task == "labels":
            return x, self.targets(raw_targets)
        return x, self._target_finished(self._moved(raw_targets.float(), draw, self._mode))

    def plain(self, x: Tensor) -> Tensor:
        """Inputs (n, C, …) without their normalisation, for a picture: RGB where they are BGR."""
        for one in reversed([one for one in self._late if one.name == "normalize"]):
            x = x * one.value.get("std", 1.0) + one.value.get("mean", 0.0)
        names = [one.value for one in self._light if _converts(one.transform)]
        last = names[-1].partition("2")[2] if names else "BGR" if self._flipped else "RGB"
        return x.flip(1) if last == "BGR" and x.shape[1] == 3 else x

    def plain_targets(self, y: Tensor) -> Tensor:
        """Targets without their normalisation."""
        for scale in reversed(self._target_scale if self.task != "classes" else []):
            y = y * scale.get("std", 1.0) + scale.get("mean", 0.0)
        return y

    @property
    def _mode(self) -> str:
        return "nearest" if self._mask else "bilinear"

    def _scaled(self, raw: Tensor) -> Tensor:
        x = raw.float() / 255
        return x.flip(1) if self._flipped and x.shape[1] == 3 else x

    def _moved(self, x: Tensor, draw: Draw | None, mode: str) -> Tensor:
        moves = [one for one in self._moving if draw or one.name not in RANDOM]
        if not moves:
            return x
        height, width = x.shape[2:]
        back, (across, down) = _composed(moves, draw, (width, height))
        # In plain sums: a GPU's matrix product would round to 10 bits, a quarter of a pixel.
        a, b, c, d, e, f = (_column(one) for one in back)
        x_out = torch.arange(across, device=x.device).view(1, 1, -1) + 0.5 - across / 2
        y_out = torch.arange(down, device=x.device).view(1, -1, 1) + 0.5 - down / 2
        columns = (a * x_out + b * y_out + c) * (2 / width)
        rows = (d * x_out + e * y_out + f) * (2 / height)
        grid = torch.stack(torch.broadcast_tensors(columns, rows), dim=-1)
        grid = grid.expand(len(x), -1, -1, -1)
        return F.grid_sample(x, grid, mode, "reflection", align_corners=False)

    def _lit(self, x: Tensor, draw: Draw | None) -> Tensor:
        for one in self._light:
            if _converts(one.transform):
                x = converted(x, one.value)
            elif draw:
                by = (2 * draw.uniform(one.place)[:, 0].view(-1, 1, 1, 1) - 1) * one.value
                if one.name == "random_contrast":
                    mean = x.mean(dim=(1, 2, 3), keepdim=True)
                    x = ((x - mean) * (1 + by) + mean).clamp(0, 1)
                else:
                    x = (x + by).clamp(0, 1)
        return x

    def _finished(self, x: Tensor) -> Tensor:
        for one in self._late:
            if one.name == "normalize":
                x = _normalized(x, one.value)
        return x

    def truth(self, raw: Tensor) -> Tensor:
        """Raw targets of any size as a loss takes them, where they are."""
        return self._target_finished(raw.float())

    def _target_finished(self, y: Tensor) -> Tensor:
        if self.task == "classes":  # what normalize makes of their values, the reading knows
            return y.round()
        y = y / 255
        if self.task == "channels":
            y = y.flip(1) if self._flipped and y.shape[1] == 3 else y
            for one in self._target_light:
                y = converted(y, one.value)
        for scale in self._target_scale:
            y = _normalized(y, scale)
        return y

    def _with_patches(
        self, raw: Tensor, raw_targets: Tensor, draw: Draw, training: bool = False
    ) -> tuple[Tensor, Tensor]:
        """What is cut out of the inputs is the target, whatever the targets were."""
        where = "data.transforms, random_patches"
        if self.task in ("labels", "classes"):
            found = f"the targets are {self.task}"
            raise InputError(where, found, "a network that gives images, with BCE or MSE")
        moved = self._moved(self._scaled(raw), draw if training else None, "bilinear")
        x = self._lit(moved, draw if training else None)
        if x.shape[1] != raw_targets.shape[1]:
            found = f"patches of {x.shape[1]} channels, but {raw_targets.shape[1]} outputs"
            raise InputError(where, found, "a network of as many outputs as channels")
        y: Tensor | None = None
        for one in self._late:
            if one.name == "normalize":
                x = _normalized(x, one.value)
                y = _normalized(y, one.value) if y is not None and one in self._shared_late else y
                continue
            cut = draw.squares(one.value.number, one.value.size, x.shape[2], x.shape[3])
            y = x * cut if y is None else y + x * cut
            x = x * ~cut
        assert y is not None
        return x, y


def _normalized(x: Tensor, scale: dict[str, float]) -> Tensor:
    return (x - scale.get("mean", 0.0)) / scale.get("std", 1.0)


class Draw:
    """Random numbers for the samples of a batch, a function of seed, epoch and index alone.

    Counters are mixed by the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable
    pseudorandom number generators", 2014), in 64-bit integers that wrap around.
    """

    def __init__(self, seed: int, epoch: int, indices: Tensor, patches_at: int) -> None:
        key = ((seed * 1_000_003 + epoch) * 0x9E3779B97F4A7C15 + 1) % 2**64
        start = torch.full_like(indices, _signed(key), dtype=torch.int64)
        self._samples = _mixed(_mixed(start) + indices.long() * _signed(0xD1B54A32D192ED03))
        self._patches_at = patches_at

    def uniform(self, place: int) -> Tensor:
        """(n, 8) numbers in [0, 1) for the transform at a place of the list."""
        return self._uniform(DRAWS * place, DRAWS)

    def squares(self, number: int, size: int, height: int, width: int) -> Tensor:
        """Where `number` squares of side `size` lie, (n, 1, H, W) bool."""
        if size > min(height, width):
            found = f"a size of {size} in images of {width}x{height} pixels"
            raise InputError("data.transforms, random_patches", found, "a smaller size")
        numbers = self._uniform(self._patches_at, 2 * number)
        top, left = numbers[:, :number], numbers[:, number:]

        def within(corner: Tensor, side: int) -> Tensor:
            """(n, number, side): whether a row or column lies in each square."""
            first = (corner * (side - size + 1)).floor()[:, :, None]
            place = torch.arange(side, device=corner.device)
            return ((place >= first) & (place < first + size)).float()

        covered = within(top, height).transpose(1, 2) @ within(left, width)
        return (covered > 0)[:, None]

    def _uniform(self, first: int, count: int) -> Tensor:
        counters = torch.arange(first + 1, first + count + 1, device=self._samples.device)
        bits = _mixed(self._samples[:, None] + counters * _signed(0x9E3779B97F4A7C15))
        return ((bits >> 40) & 0xFFFFFF).float() / 2**24


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ ((x >> 30) & (2**34 - 1))) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ ((x >> 27) & (2**37 - 1))) * _signed(0x94D049BB133111EB)
    return x ^ ((x >> 31) & (2**33 - 1))


Affine = tuple[Any, ...]
"""(a, b, c, d, e, f): from (x, y) to (a x + b y + c, d x + e y + f); each one number, or (n,)."""


def _column(value: Any) -> Any:
    return value.view(-1, 1, 1) if isinstance(value, Tensor) else value


def _then(first: Affine, second: Affine) -> Affine:
    """`first` of what `second` gives."""
    a, b, c, d, e, f = first
    p, q, r, s, t, u = second
    return (
        *(a * p + b * s, a * q + b * t, a * r + b * u + c),
        *(d * p + e * s, d * q + e * t, d * r + e * u + f),
    )


def _composed(
    moves: list[_Place], draw: Draw | None, size: tuple[int, int]
) -> tuple[Affine, tuple[int, int]]:
    """The moves as one: from a pixel of the result to where it comes from, both in pixels from the
    middle of their image; and the (width, height) of the result."""
    whole: Affine = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    for move in moves:
        width, height = size
        numbers = draw.uniform(move.place).unbind(1) if draw and move.name in RANDOM else ()
        if move.name in SIZING:
            size = (move.value[0], move.value[1])
        if move.name == "resize":
            step: Affine = (width / size[0], 0.0, 0.0, 0.0, height / size[1], 0.0)
        elif move.name == "center_crop":
            if size[0] > width or size[1] > height:
                found = f"{size[0]}x{size[1]} of an image of {width}x{height} pixels"
                raise InputError("data.transforms, center_crop", found, "a smaller crop")
            odd = (width - size[0]) % 2 / 2, (height - size[1]) % 2 / 2
            step = (1.0, 0.0, -odd[0], 0.0, 1.0, -odd[1])
        elif move.name == "jitter_crop":
            left, right, top, bottom = (number * move.value / 2 for number in numbers[:4])
            across, down = (left - right) * width / 2, (top - bottom) * height / 2
            step = (1 - left - right, 0.0, across, 0.0, 1 - top - bottom, down)
        elif move.name == "random_zoom":
            part = 1 - numbers[0] * move.value
            step = (part, 0.0, 0.0, 0.0, part, 0.0)
        elif move.name == "rotate":
            angle = math.radians(move.value)
            step = (math.cos(angle), math.sin(angle), 0.0, -math.sin(angle), math.cos(angle), 0.0)
        elif move.name == "random_rotate":
            angles = ((2 * numbers[0] - 1) * move.value).deg2rad()
            step = (angles.cos(), angles.sin(), 0.0, -angles.sin(), angles.cos(), 0.0)
        else:
            sign = 1 - 2 * (numbers[0] < move.value).float()
            horizontal = move.name == "random_horizontal_flip"
            step = (
                (sign, 0.0, 0.0, 0.0, 1.0, 0.0) if horizontal else (1.0, 0.0, 0.0, 0.0, sign, 0.0)
            )
        whole = _then(whole, step)
    return whole, size
