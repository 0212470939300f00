"""What a network file describes, for `python -m trainer --describe LAYERS [--at 256x256]`.

    name, input_shape, output_shape   without the batch, channels first, null: any size
    parameters, trainable_parameters  without running statistics
    operations                        as rmldnn counts them; null but for Keras files
    divisor                           sides must be multiples of it; null: one size alone
    weights                           what the file says
    multiply_adds                     with --at, of one image: convolutions and dense layers
    activation_memory_bytes           with --at, of one image: what goes out of all layers, 32 bit

Of a Keras file all of it comes from the file, without torch; other networks are built on torch's
meta device, without weights. Of a Python file of the user's own nothing is run: null.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trainer.errors import InputError
from trainer.networks.description import Network, array_order, check_size, read_network, shown_size

if TYPE_CHECKING:
    from trainer.networks.build import SegmentationNetwork


def parse_size(text: str) -> tuple[int, ...]:
    """256x256 (width, height) or 64x64x32 (depth, height, width); raises InputError."""
    if not re.fullmatch(r"[1-9]\d{0,8}(x[1-9]\d{0,8}){0,2}", text):
        raise InputError("--at", f"found '{text}'", "like 256x256, or 64x64x64 for volumes")
    return tuple(int(side) for side in text.split("x"))


def described(path: str, at: str | None = None) -> dict[str, Any]:
    """The facts about the network file at `path`; raises InputError."""
    size = parse_size(at) if at else None
    network = read_network(path)
    if size and len(size) != network.dimensions:
        accepted = "x".join(["N"] * network.dimensions)
        raise InputError("--at", f"{at} for images of {network.dimensions} dimensions", accepted)
    if size and network.kind != "module":
        check_size(network, size, "--at")
    sizes = array_order(size) if size else None
    if network.kind == "keras":
        return _of_graph(network, sizes)
    return _of_module(network, sizes)


def _channels_first(shape: Sequence[int | None]) -> list[int | None]:
    return [shape[-1], *shape[:-1]]


def _of_graph(network: Network, sizes: tuple[int, ...] | None) -> dict[str, Any]:
    graph = network.graph
    shapes = graph.shapes(sizes)
    coming, going = (shapes[node.name] for node in (graph.nodes[0], graph.nodes[-1]))
    facts = {
        "name": network.label,
        "input_shape": _channels_first(coming),
        "output_shape": list(going) if graph.literal_output else _channels_first(going),
        "parameters": graph.parameters,
        "trainable_parameters": graph.trainable_parameters,
        "operations": graph.operations,
        "divisor": graph.divisor,
        "weights": None,
    }
    if sizes:
        facts["multiply_adds"] = graph.multiply_adds(sizes)
        facts["activation_memory_bytes"] = graph.activation_memory_bytes(sizes)
    return facts


def _of_module(network: Network, sizes: tuple[int, ...] | None) -> dict[str, Any]:
    free = list(sizes) if sizes else [None] * network.dimensions
    facts: dict[str, Any] = {
        "name": network.label,
        "input_shape": [network.in_channels, *free],
        "output_shape": [network.classes, *free],
        "parameters": None,
        "trainable_parameters": None,
        "operations": None,
        "divisor": network.divisor,
        "weights": network.weights,
    }
    computed = {"multiply_adds": None, "activation_memory_bytes": None} if sizes else {}
    if network.kind == "module":
        return facts | computed
    from trainer.networks.build import parameter_counts

    module = _built(network)
    facts["parameters"], facts["trainable_parameters"] = parameter_counts(module)
    return facts | (_computed(module, sizes) if sizes else {})


def _built(network: Network) -> SegmentationNetwork:
    """On the meta device, and where the library cannot do that, in memory."""
    import torch

    from trainer.networks.build import build

    network = network.model_copy(update={"weights": None})
    try:
        with torch.device("meta"):
            return build(network).eval()
    except InputError:  # of both: a wrong file, or numbers that the library looks at meanwhile
        return build(network).eval()


def _computed(module: SegmentationNetwork, sizes: tuple[int, ...]) -> dict[str, int]:
    """Of one image."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    total = 0

    def add(_: Any, __: Any, result: Any) -> None:
        nonlocal total
        total += result.numel() if isinstance(result, torch.Tensor) else 0

    for part in module.modules():
        if not list(part.children()):
            part.register_forward_hook(add)
    network, device = module.description, next(module.parameters()).device
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module(torch.zeros(1, network.in_channels, *sizes, device=device))
    except (RuntimeError, ValueError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        shown = shown_size(array_order(sizes))
        raise InputError("--at", f"{network.label} cannot take {shown}: {lines[0]}") from None
    flops = int(counter.get_total_flops())
    return {"multiply_adds": flops // 2, "activation_memory_bytes": 4 * total}
