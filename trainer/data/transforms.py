"""What happens to a batch on the device: scaling to [0, 1], augmentation, normalisation.

Deterministic transforms always act; random ones only in training, with parameters drawn for each
image, image and mask together. The geometric ones are one resampling (bilinear for images, nearest
for masks, mirrored at the border).
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from trainer.config import Data, Transform
from trainer.errors import InputError

GEOMETRIC = ("random_horizontal_flip", "random_vertical_flip", "random_rotate", "random_zoom")
INTENSITY = ("random_brightness", "random_contrast")


def resize_of(data: Data) -> tuple[int, int] | None:
    """(width, height) of the resize in the transforms; None where there is none."""
    sizes = [t.value for t in data.transforms if t.name == "resize"]
    for name in ("input_transforms", "target_transforms"):
        own = [t.value for t in getattr(data, name) if t.name == "resize"]
        if own and own != sizes[-1:]:
            found = f"resize {own[-1]} stands on one side only"
            raise InputError(f"data.{name}", found, "resize in data.transforms, for both sides")
    return (sizes[-1][0], sizes[-1][1]) if sizes else None


def _settings(transforms: list[Transform], names: tuple[str, ...]) -> dict[str, float]:
    return {t.name: float(t.value) for t in transforms if t.name in names}


class BatchTransform:
    """uint8 batches -> float batches, as the configuration says.

    With several classes (`classes` above 1) targets are class indices and stay so.
    """

    def __init__(self, data: Data, classes: int = 1) -> None:
        self._scale = 255 if classes == 1 else 1
        self.geometric = _settings(data.transforms, GEOMETRIC)
        inputs = [*data.transforms, *data.input_transforms]
        self.intensity = _settings(inputs, INTENSITY)
        self.input_scale = [t.value for t in inputs if t.name == "normalize"]
        targets = [*data.transforms, *data.target_transforms]
        self.target_scale = [t.value for t in targets if t.name == "normalize"]
        for name in ("input_transforms", "target_transforms"):
            if odd := _settings(getattr(data, name), GEOMETRIC):
                found = f"{next(iter(odd))} on one side only would part images and masks"
                raise InputError(f"data.{name}", found, "it stands in data.transforms")

    def inputs(self, batch: Tensor) -> Tensor:
        """Images (n, C, H, W) as the network takes them; no augmentation."""
        return _normalize(batch.float() / 255, self.input_scale)

    def targets(self, batch: Tensor) -> Tensor:
        """Targets (n, 1, H, W), in [0, 1] or class indices."""
        return _normalize(batch.float() / self._scale, self.target_scale)

    def augmented(
        self, inputs: Tensor, targets: Tensor, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """Images and targets of a training batch; every random number comes from `generator`."""
        x, y = inputs.float() / 255, targets.float() / self._scale
        if self.geometric:
            grid = self._grid(x, generator)
            x = F.grid_sample(x, grid, "bilinear", "reflection", align_corners=False)
            y = F.grid_sample(y, grid, "nearest", "reflection", align_corners=False)
        if self.intensity:
            x = self._light(x, generator)
        return _normalize(x, self.input_scale), _normalize(y, self.target_scale)

    def _grid(self, x: Tensor, generator: Generator) -> Tensor:
        n, _, height, width = x.shape

        def uniform() -> Tensor:
            return torch.rand(n, generator=generator, device=x.device)

        def flip(name: str) -> Tensor:
            return 1 - 2 * (uniform() < self.geometric.get(name, 0.0)).float()

        horizontal, vertical = flip("random_horizontal_flip"), flip("random_vertical_flip")
        angle = (2 * uniform() - 1) * math.radians(self.geometric.get("random_rotate", 0.0))
        zoom = 1 - uniform() * self.geometric.get("random_zoom", 0.0)
        cosine, sine, zero = zoom * angle.cos(), zoom * angle.sin(), torch.zeros_like(zoom)
        # Grid coordinates run from -1 to 1 on both axes: a rotation has to undo the aspect ratio.
        rows = [
            torch.stack([cosine * horizontal, -sine * vertical * height / width, zero], dim=1),
            torch.stack([sine * horizontal * width / height, cosine * vertical, zero], dim=1),
        ]
        return F.affine_grid(torch.stack(rows, dim=1), list(x.shape), align_corners=False)

    def _light(self, x: Tensor, generator: Generator) -> Tensor:
        def symmetric(name: str) -> Tensor:
            values = torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device)
            return (2 * values - 1) * self.intensity.get(name, 0.0)

        contrast, brightness = 1 + symmetric("random_contrast"), symmetric("random_brightness")
        mean = x.mean(dim=(1, 2, 3), keepdim=True)
        return ((x - mean) * contrast + mean + brightness).clamp(0, 1)


def _normalize(x: Tensor, scales: list[dict[str, float]]) -> Tensor:
    for scale in scales:
        x = (x - scale.get("mean", 0.0)) / scale.get("std", 1.0)
    return x
