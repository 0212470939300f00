"""Small prepared volumes for tests, drawn and written in a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.volumes.grid import Grid
from trainer.data.volumes.preparation import Preparation
from trainer.data.volumes.volume_file import Case, Header, VolumeWriter

PARTS = {"train": 6, "validation": 3, "test": 2}
NETWORK = {"network": "unet", "dimensions": 3, "width": 4, "depth": 2, "normalization": "instance"}


def draw(seed: int, side: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Noise (D, H, W) with a bright ball (1) in a less bright one (2), and its label."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(side - 3, side + 4, 3))
    place = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    centre = np.array(shape) / 2 + rng.uniform(-2, 2, 3)
    distance = np.linalg.norm(place - centre, axis=-1)
    label = np.zeros(shape, np.uint8)
    label[distance < side * 0.35] = 2
    label[distance < side * 0.2] = 1
    image = rng.normal(0, 0.3, shape) + np.array([0.0, 3.0, 1.5])[label]
    return image.astype(np.float32), label


def write_volumes(folder: Path, classes: int = 3, side: int = 20) -> Path:
    """train.h5, validation.h5 and test.h5 of cases at 1 mm, whose scans had 2 x 1 x 1 mm and other
    axes; with config.json and layers.json, as a preparation leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {"ball": (1,), "shell": (2,)} if classes == 3 else {"ball": (1, 2)}
    preparation = Preparation(orientation="RAS", spacing_mm=(1, 1, 1), labels=names)
    header = Header(
        kind="test", channels=["CT"], classes=preparation.classes, preparation=preparation
    )
    seed = 0
    for part, count in PARTS.items():
        with VolumeWriter(folder / f"{part}.h5", header) as out:
            for _ in range(count):
                image, label = draw(seed, side)
                affine = np.diag([-2.0, 1, 1, 1])[:, [1, 0, 2, 3]]
                affine[:3, 3] = [30, -10, 5]
                scan = image[::2].transpose(1, 0, 2)[:, ::-1]
                original = np.ascontiguousarray(label[::2].transpose(1, 0, 2)[:, ::-1])
                grid = Grid(original.shape, affine)
                own = preparation.prepared_grid(grid)
                out.add(
                    Case(f"case_{seed:02d}", own, grid, patient=f"p{seed}"),
                    preparation.image(np.ascontiguousarray(scan)[None], grid),
                    preparation.label(original, grid),
                    preparation.classes_of(original),
                )
                seed += 1
    (folder / "layers.json").write_text(json.dumps(NETWORK))
    (folder / "config.json").write_text(json.dumps(configuration(folder)))
    return folder


def configuration(folder: Path, **keys: Any) -> dict[str, Any]:
    """A short training on them; `keys` replace sections."""
    content: dict[str, Any] = {
        "num_epochs": 2,
        "layers": str(folder / "layers.json"),
        "data": {
            "type": "hdf5",
            "input_path": str(folder / "train.h5"),
            "test_input_path": str(folder / "validation.h5"),
            "batch_size": 2,
            "test_batch_size": 2,
            "patches": {"size": [16, 16, 16], "per_case": 2},
            "transforms": [
                {"random_flip": 0.5},
                {"random_affine": {"probability": 0.5, "degrees": 20, "zoom": 0.2, "shift": 0.1}},
            ],
            "input_transforms": [
                {"random_factor": {"probability": 0.5, "low": 0.7, "high": 1.3}},
                {"random_noise": {"probability": 0.5, "std": 0.2}},
            ],
        },
        "optimizer": {"type": "adam", "learning_rate": 0.005},
        "loss": {"function": "dice_ce"},
    }
    return {"neural_network": {**content, **keys}}
