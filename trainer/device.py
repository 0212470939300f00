"""The device that a run computes on, its threads, its precision."""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from trainer.config import Precision
from trainer.errors import InputError

Network = TypeVar("Network", bound=nn.Module)


def open_device(name: str, threads: int | None, deterministic: bool) -> torch.device:
    """The device `name`: "cpu", "cuda", "cuda:N", "mps" (a Mac's GPU), or "auto" (a GPU if any).

    Raises InputError where a GPU was asked for and torch cannot use it: a trial that was to have a
    GPU never trains on the CPU unasked.
    """
    if threads:
        torch.set_num_threads(threads)
    if name == "auto":
        with warnings.catch_warnings():  # an old driver is only told where a GPU was asked for
            warnings.simplefilter("ignore")
            cuda = torch.cuda.is_available()
        name = "cuda" if cuda else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if name == "mps":
        _check_mps()
        return torch.device("mps")
    if not re.fullmatch(r"cuda(:\d+)?", name):
        raise InputError("--device", f"unknown device '{name}'", "auto, cpu, cuda, cuda:N, mps")
    _check_cuda()
    torch.set_float32_matmul_precision("high")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = not deterministic
    torch.use_deterministic_algorithms(deterministic)
    return torch.device(name)


def _check_cuda() -> None:
    if torch.version.cuda is None and torch.version.hip is None:
        raise InputError(
            "--device",
            f"this torch ({torch.__version__}) was built without CUDA",
            "a torch that fits the GPU",
            "install torch with CUDA, or run with --no-gpu",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.zeros(1, device="cuda").add_(1).cpu()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            "--device",
            f"torch {torch.__version__} (CUDA {torch.version.cuda}) cannot use the GPU: {reason}",
            "a driver and a GPU that fit this torch",
            "update the NVIDIA driver, install a torch for your driver, or run with --no-gpu",
        ) from None


def _check_mps() -> None:
    if torch.backends.mps.is_available():
        return
    found = "finds no Apple GPU (macOS too old, or not on a Mac's own processor)"
    if not torch.backends.mps.is_built():
        found = "was built without MPS"
    raise InputError(
        "--device",
        f"this torch ({torch.__version__}) {found}",
        "a Mac with an Apple GPU",
        "run with --device cpu",
    )


def in_layout(batch: Tensor, device: torch.device) -> Tensor:
    """A batch (N, C, …) as it is computed fastest: channels last for images and volumes; on MPS the
    plain order, which every operation there takes."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if device.type == "mps" or batch.dim() not in formats:
        return batch.contiguous()
    return batch.contiguous(memory_format=formats[batch.dim()])


def placed(network: Network, device: torch.device) -> Network:
    """The network on the device, in its memory layout."""
    network = network.to(device)
    if device.type == "mps":
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return network


def on_device(batch: Tensor, device: torch.device) -> Tensor:
    """A batch there; CUDA copies meanwhile, MPS could read memory that is free again."""
    return batch.to(device, non_blocking=device.type == "cuda")


def check_precision(precision: Precision, device: torch.device) -> None:
    """Raises InputError where the device does not compute it."""
    if precision == "float16" and device.type != "cuda":
        found = f"float16 on {device.type}"
        raise InputError("precision", found, "auto, float32 or bfloat16; float16 on CUDA")


def possible(precision: Precision, device: torch.device) -> Precision:
    """That of a trained network, or auto where the device does not compute it."""
    return "auto" if precision == "float16" and device.type != "cuda" else precision


def autocast(
    device: torch.device, precision: Precision = "auto"
) -> contextlib.AbstractContextManager[None]:
    """The precision asked for; `auto` is bfloat16 on GPUs that compute it, float32 elsewhere.

    On a CPU without matrix instructions bfloat16 is slower than single precision.
    """
    if precision == "float32":
        return contextlib.nullcontext()
    if precision != "auto":
        return torch.autocast(device.type, dtype=getattr(torch, precision))
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return contextlib.nullcontext()


def forward_of(
    network: Callable[[Tensor], Tensor], device: torch.device, precision: Precision = "auto"
) -> Callable[[Tensor], Tensor]:
    """How a network evaluates and predicts a batch: in the device's layout, in this precision."""

    def forward(batch: Tensor) -> Tensor:
        with autocast(device, precision):
            return network(in_layout(batch, device))

    return forward


def peak_memory_bytes(device: torch.device) -> int | None:
    """The most that an NVIDIA GPU's memory held of this run so far; None where it is not known."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def device_label(device: torch.device) -> str:
    """For the log: CPU, MPS, or CUDA:0 with the GPU's name."""
    if device.type == "cpu":
        return "CPU"
    if device.type == "mps":
        return "MPS (Apple GPU)"
    return f"CUDA:{device.index or 0} ({torch.cuda.get_device_name(device)})"
