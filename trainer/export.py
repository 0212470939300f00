"""A trained model for other programs: weights as .safetensors, and the whole network as ONNX.

    python -m trainer.export best_model --out exported

writes model.safetensors, model.onnx and model.json into the folder. The ONNX network takes images
as float32 (N, C, H, W), RGB or grey, pixels / 255, and gives probabilities (N, classes, H, W):
normalisation, the order of colours and the final activation are inside. Batch and image size are
free where the network's are. model.json says how an image becomes its input, and what its output
means; of volumes: how a scan is prepared, and in which windows it is predicted. It is compared with
torch at two sizes before it is written.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.data.slice_files import CHANNELS, PLANES
from trainer.errors import InputError
from trainer.files import write_atomically, write_json
from trainer.model import Model, load_model
from trainer.networks.description import array_order

if TYPE_CHECKING:
    import torch

FORMATS = ("safetensors", "onnx")
TOLERANCE = 1e-4
INPUT, OUTPUT = "image", "probabilities"
AXES = ("depth", "height", "width")


def description(model: Model) -> dict[str, Any]:
    """model.json: how an image becomes the input, and what the output means."""
    network = model.network.description
    return {
        "schema_version": 1,
        "network": network.label,
        "input": {
            "name": INPUT,
            "type": "float32",
            "axes": ["batch", "channel", *_axes(network.dimensions)],
            "channels": network.in_channels,
            "order": _order(model),
            "scaling": model.use.scaling,
            "size": _only_size(model),
            "multiple_of": network.divisor,
        },
        "output": {
            "name": OUTPUT,
            "classes": model.classes,
            "channels": network.classes,
            "threshold": 0.5 if network.classes == 1 else None,
            "decision": "above the threshold" if network.classes == 1 else "largest channel",
        },
        **_of_volumes(model),
        **_of_slices(model),
    }


def _of_volumes(model: Model) -> dict[str, Any]:
    """How a scan becomes an input: the channels by name, the preparation, the windows."""
    header, window = model.use.volumes, model.use.window
    if header is None or window is None:
        return {}
    return {
        "channels": list(header.channels),
        "preparation": header.preparation.model_dump(mode="json", exclude_defaults=True),
        "windows": window.model_dump(mode="json"),
    }


def _of_slices(model: Model) -> dict[str, Any]:
    """Which channels of an array (slices, height, width, channels) are the input."""
    used = model.use.slices
    if used is None:
        return {}
    return {
        "slices": {
            **used.model_dump(mode="json"),
            "channel_names": list(CHANNELS),
            "mask_names": list(PLANES),
            "normalization": "(x - mean) / std of a whole scan, over all of its channels",
            "orientation": "axial slices, turned by 270 degrees counter-clockwise",
        }
    }


def _axes(dimensions: int) -> tuple[str, ...]:
    return AXES[len(AXES) - dimensions :]


def _only_size(model: Model) -> list[int] | None:
    """The size of the training ([width, height]), or that which the network alone takes; null: any.

    Volumes have the order of their axes.
    """
    if model.size:
        return list(model.size)
    network = model.network.description
    if network.keras is None or network.graph.divisor is not None:
        return None
    declared = [side for side in network.graph.input_shape[:-1] if side]
    return declared[::-1] if network.dimensions == 2 else declared


def _order(model: Model) -> str:
    """Of the channels."""
    if model.use.volumes:
        return "as in channels"
    if model.use.slices:
        return "as in slices.channels"
    if model.use.scaling == "none":
        return "as in the arrays of the training"
    return "grey" if model.network.description.in_channels == 1 else "RGB"


def _whole(model: Model) -> torch.nn.Module:
    """Pixels / 255 (or arrays as they are) -> probabilities: what is around the network put into
    it."""
    import torch

    from trainer.losses import probabilities

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = model.network

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            raw = image if model.use.scaling == "none" else image * 255
            return probabilities(model.network(model.transform.inputs(raw)), model.reading)

    return Whole().eval()


def _sizes(model: Model) -> list[tuple[int, ...]]:
    """A small size and an odd one that the network takes, else the one of its training."""
    network = model.network.description
    if network.dimensions == 0:
        return [()]
    step = network.divisor
    small = 2 * step if step > 1 else 32
    odd = 3 * step if step > 1 else 45
    sizes = [(small,) * network.dimensions, (small,) * (network.dimensions - 1) + (odd,)]
    taken = []
    for size in sizes:
        with contextlib.suppress(InputError):
            model.network.check(array_order(size))
            taken.append(size)
    if len(taken) == len(sizes):
        return taken
    own = tuple(_only_size(model) or ())
    own = tuple(reversed(own)) if network.dimensions == 2 else own
    if len(own) != network.dimensions:
        raise InputError("network", f"{network.label} takes neither of {sizes}", "any size")
    return [own]


def to_onnx(model: Model) -> bytes:
    """The network as ONNX, compared with torch; raises InputError where it cannot be exported."""
    import torch

    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if not find_spec(name)]:
        fix = "make install, or --format safetensors"
        raise InputError("onnx", f"{sys.executable} has no {', '.join(missing)}", "", fix)
    whole = _whole(model).cpu()
    channels = model.network.description.in_channels
    sizes = _sizes(model)
    free = {0: "batch"}
    if len(sizes) > 1:
        dimensions = model.network.description.dimensions
        free |= dict(enumerate(_axes(dimensions), start=2))
    images = [torch.rand(2 + n, channels, *size) for n, size in enumerate(sizes)]
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                whole,
                (images[-1],),
                dynamo=True,
                verbose=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes={"image": free},
            )
    except Exception as error:  # torch.export raises many kinds
        lines = str(error).strip().splitlines() or [type(error).__name__]
        label = model.network.description.label
        raise InputError("onnx", f"{label} cannot be exported: {lines[0]}") from None
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    _compare(whole, content, images)
    return content


def _compare(whole: torch.nn.Module, content: bytes, images: Sequence[torch.Tensor]) -> None:
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for image in images:
        (found,) = session.run([OUTPUT], {INPUT: image.numpy()})
        with torch.inference_mode():
            expected = whole(image).numpy()
        worst = float(np.abs(found - expected).max())
        if found.shape != expected.shape or not worst < TOLERANCE:
            told = f"differs from torch by {worst:.2g} for an input {tuple(image.shape)}"
            raise InputError("onnx", told, f"below {TOLERANCE:g}")


def to_safetensors(model: Model) -> bytes:
    """Parameters and running statistics by name; the network's description as metadata."""
    from safetensors.torch import save

    network = model.network.description.model_dump_json()
    # Copies: a tensor with two names, as in MONAI's DynUNet, is refused.
    state = {k: v.cpu().contiguous().clone() for k, v in model.network.body.state_dict().items()}
    return save(state, {"network": network, "use": model.use.model_dump_json(exclude_unset=True)})


def export(model: Model, out: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Writes the files into the folder `out`; raises InputError where one of them is there."""
    files = [out / f"model.{name}" for name in (*formats, "json")]
    for file in files:
        if file.exists():
            raise InputError(str(file), "is there already", fix="name another folder with --out")
    makers = {"safetensors": to_safetensors, "onnx": to_onnx}
    contents = [makers[name](model) for name in formats]
    out.mkdir(parents=True, exist_ok=True)
    for file, content in zip(files, contents, strict=False):
        write_atomically(file, content)
    write_json(files[-1], description(model))
    return files


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code."""
    from trainer.__main__ import prepare_process, translated

    parser = argparse.ArgumentParser(
        prog="python -m trainer.export", description="Writes a trained model for other programs."
    )
    parser.add_argument("model", type=Path, nargs="?", default=Path("best_model"))
    parser.add_argument("--out", type=Path, default=Path("exported"), help="folder for the files")
    both = f"comma list of {', '.join(FORMATS)} (default: both)"
    parser.add_argument("--format", default=",".join(FORMATS), help=both)
    trust = "run the Python file of a model whose network is somebody's own"
    parser.add_argument("--trust-code", action="store_true", help=trust)
    given = parser.parse_args(arguments)
    try:
        formats = [name.strip().lower() for name in given.format.split(",") if name.strip()]
        for name in formats or [""]:
            if name not in FORMATS:
                raise InputError("--format", f"unknown name '{name}'", ", ".join(FORMATS))
        prepare_process(None)
        model = load_model(given.model, "cpu", trust_code=given.trust_code)
        files = export(model, given.out, formats)
    except Exception as error:
        known = translated(error)
        if known is None:
            raise
        print(f"Error: {known}", file=sys.stderr)
        return known.exit_code
    for file in files:
        print(f"{file}: {file.stat().st_size:,} bytes")
    if "onnx" in formats:
        size = _only_size(model)
        window = model.use.window.size if model.use.window else None
        told = f"trained at {size}" if size else "it takes any size"
        told = f"it predicts windows of {window}" if window else told
        print(f"The ONNX network equals torch's within {TOLERANCE:g}; {told}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
