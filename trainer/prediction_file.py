"""Predictions as HDF5: `output_<epoch>.h5`, one float32 dataset (C, H, W) an image.

A dataset is named after its image file (in subfolders: a group for each) and holds probabilities at
the network's size. The file's attributes say where the images lie and what masks mean, for
`python -m trainer.review`.
"""

from __future__ import annotations

import io
from pathlib import Path
from types import TracebackType

import h5py
import numpy as np
from numpy.typing import NDArray

from trainer.config import Data
from trainer.data.masks import Masks
from trainer.files import write_atomically


class PredictionFile:
    """Writes predictions; the file appears under its name when all of them are there."""

    def __init__(self, data: Data, epoch: int, masks: Masks | None) -> None:
        assert data.test_output_path
        self.path = Path(data.test_output_path) / f"output_{epoch}.h5"
        self._buffer = io.BytesIO()  # HDF5 may hide that a disk is full, and leave half a file
        self._file = h5py.File(self._buffer, "w")
        inputs, targets = data.test_input_path, data.test_target_path
        if inputs is None:  # a validation part of the training images
            inputs, targets = data.input_path, data.target_path
        self._file.attrs["inputs"] = inputs or ""
        self._file.attrs["targets"] = targets or ""
        self._file.attrs["threshold"] = 0.5
        if masks:
            self._file.attrs["masks"] = masks.model_dump_json()

    def write(self, name: str, probabilities: NDArray[np.float32]) -> None:
        """One image's probabilities (C, H, W)."""
        self._file.create_dataset(name, data=probabilities.astype(np.float32, copy=False))

    def __enter__(self) -> PredictionFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is None:
            write_atomically(self.path, self._buffer.getbuffer())
