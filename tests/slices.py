"""Small arrays of slices for tests: the target lies where flair (channel 2) is bright."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

EACH = 12
"""Slices of a patient; the first three have no target."""


def write_slices(
    folder: Path, train: int = 8, test: int = 2, side: int = 16, record: bool = True
) -> Path:
    """imgs_ and msks_ of so many patients each, with slices.json as the preparation leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    parts: dict[str, list[dict[str, object]]] = {}
    patient = 0
    for part, patients in (("train", train), ("test", test)):
        rows = patients * EACH
        images = rng.normal(0, 0.5, (rows, side, side, 4)).astype(np.float32)
        masks = np.zeros((rows, side, side, 4), np.uint8)
        parts[part] = []
        for number in range(patients):
            for row in range(number * EACH + 3, (number + 1) * EACH):
                a, b = rng.integers(0, side // 2, 2)
                masks[row, a : a + 6, b : b + 6, 1 + row % 3] = 1
                images[row, a : a + 6, b : b + 6, 2] += 4
            name = f"Brats17_{patient:02d}"
            told = {"scan": f"{name}_1", "patient": name, "first_slice": 0, "slices": EACH}
            parts[part].append(told)
            patient += 1
        if patients:
            np.save(folder / f"imgs_{part}.npy", images)
            np.save(folder / f"msks_{part}.npy", masks)
    if record:
        names = {
            "channels": ["t1", "t2", "flair", "t1ce"],
            "masks": ["background", "necrotic", "edema", "enhancing"],
        }
        (folder / "slices.json").write_text(json.dumps({**names, "parts": parts}))
    return folder
