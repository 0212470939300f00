"""Encoder weights that were fetched before: where they lie, and whether they are whole.

`python -m trainer.prepare weights LAYERS.json` fetches them (on the host, with the network); a
trial only reads them. Each is a safetensors file with a JSON beside it (source, sha256). The
folder is $RML_WEIGHTS, else ~/.cache/rml-optimization/weights. Torch-free.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from trainer.errors import InputError
from trainer.networks.description import Network


def weights_folder() -> Path:
    """Where fetched weights lie."""
    if given := os.environ.get("RML_WEIGHTS"):
        return Path(given).absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "rml-optimization" / "weights"


def stored_path(network: Network, name: str = "imagenet") -> Path:
    """Where the weights `name` of the network's encoder lie, fetched or not."""
    return weights_folder() / f"{network.encoder}-{name}.safetensors"


def sha256(path: Path) -> str:
    """The checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_weights(network: Network, layers: str) -> Path | None:
    """The file of the weights that the network file names; None for random weights.

    Raises InputError where they are not there or were changed. `layers` names the network file.
    """
    if network.weights is None:
        return None
    if network.encoder is None:
        name = "the small U-Net" if network.kind == "unet" else network.label
        raise InputError(f"{layers}, weights", f"{name} has no published weights", "null")
    if network.weights != "imagenet":
        path = Path(network.weights)
        if path.suffix != ".safetensors" or not path.is_file():
            accepted = "null, imagenet, or a .safetensors file"
            raise InputError(f"{layers}, weights", f"no such file '{path}'", accepted)
        return path
    path = stored_path(network)
    if not path.is_file():
        raise InputError(
            f"{layers}, weights",
            f"the imagenet weights of {network.encoder} were not fetched",
            fix=f"python -m trainer.prepare weights {layers}",
        )
    fix = f"delete it and run: python -m trainer.prepare weights {layers}"
    try:
        expected = json.loads(path.with_suffix(".json").read_text())["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(str(path), "the .json with its checksum is missing", fix=fix) from None
    if sha256(path) != expected:
        raise InputError(str(path), "the checksum is wrong: the file was changed or cut", fix=fix)
    return path
