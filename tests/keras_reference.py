"""Keras on torch, as the independent reference of the networks from Keras files."""

from __future__ import annotations

import copy
import json
import os
import tempfile
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("KERAS_TORCH_DEVICE", "cpu")
os.environ.setdefault("KERAS_HOME", tempfile.mkdtemp(prefix="keras"))

import keras

from trainer.networks.keras.activations import ACTIVATIONS
from trainer.networks.keras.graph import Graph, read_graph
from trainer.networks.keras.module import KerasNetwork
from trainer.networks.keras.weights_h5 import torch_array

KERAS_2_ONLY = {
    "DepthwiseConv2D": ("groups", "kernel_initializer", "kernel_regularizer", "kernel_constraint"),
    "SeparableConv2D": ("groups", "kernel_initializer", "kernel_regularizer", "kernel_constraint"),
    "Conv2DTranspose": ("groups",),
    "Conv3DTranspose": ("groups",),
}


def reference(content: Any) -> Any:
    """The Keras model of a network file, which Keras 3 reads only after some words are changed."""
    model = copy.deepcopy(content)
    for layer in model["config"]["layers"]:
        config = layer["config"]
        layer.setdefault("name", config["name"])
        for key in KERAS_2_ONLY.get(layer["class_name"], ()):
            config.pop(key, None)
        if config.get("activation") == "log_softmax_v2":
            config["activation"] = "log_softmax"
        if layer["class_name"] == "LeakyReLU" and "alpha" in config:
            config["negative_slope"] = config.pop("alpha")
    model = json.loads(json.dumps(model).replace("/", "|"))
    if model["class_name"] == "Sequential":
        first = model["config"]["layers"][0]
        if first["class_name"] != "InputLayer":
            shape = first["config"].pop("batch_input_shape")
            start = {"class_name": "InputLayer", "config": {"batch_shape": shape, "name": "input"}}
            model["config"]["layers"].insert(0, start)
        return keras.Sequential.from_config(model["config"])
    return keras.Model.from_config(model["config"])


def random_weights(model: Any, seed: int = 0) -> None:
    """Weights, shifts and running statistics that are all different from what they start at."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        for variable in layer.weights:
            shape = tuple(variable.shape)
            if variable.name in ("gamma", "moving_variance"):
                value = rng.uniform(0.6, 1.4, shape)
            elif len(shape) == 1:
                value = rng.normal(0, 0.2, shape)
            else:
                value = rng.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, shape)
            variable.assign(value.astype(np.float32))


def carried(model: Any, graph: Graph) -> KerasNetwork:
    """Our network with the weights of the Keras model."""
    network = KerasNetwork(graph)
    state = network.state_dict()
    for node, name, parameter in graph.named_parameters():
        layer = model.get_layer(node.name.replace("/", "|"))
        arrays = {v.name: v.value.detach().numpy() for v in layer.weights}
        if "Depthwise" in node.class_name:
            arrays["depthwise_kernel"] = arrays["kernel"]
        if parameter.keras in arrays:
            state[name] = torch.from_numpy(torch_array(parameter, arrays[parameter.keras]))
        else:
            assert not parameter.in_file, name

    network.load_state_dict(state)
    return network.eval()


def channels_last(graph: Graph, tensor: torch.Tensor) -> NDArray[np.float32]:
    """Our output in Keras's order, its final activation applied."""
    axis = -1 if graph.literal_output else 1
    if graph.activation:
        tensor = ACTIVATIONS[graph.activation].apply(tensor, axis)
    if not graph.literal_output and tensor.dim() > 2:
        tensor = tensor.movedim(1, -1)
    return np.asarray(tensor.detach().numpy())


def difference(content: Any, size: tuple[int, ...], model: Any = None, batch: int = 2) -> float:
    """The largest difference of the two outputs, relative to the largest value of the output."""
    graph = read_graph(content, "layers.json")
    model = model or reference(content)
    random_weights(model)
    network = carried(model, graph)
    x = np.random.default_rng(1).random((batch, *size, graph.in_channels), dtype=np.float32)
    expected = model(torch.from_numpy(x), training=False).detach().numpy()
    with torch.no_grad():
        found = network(torch.from_numpy(x).movedim(-1, 1))
    ours = channels_last(graph, found)
    assert ours.shape == expected.shape, (ours.shape, expected.shape)
    assert np.isfinite(expected).all()
    return float(np.abs(ours - expected).max() / np.abs(expected).max())


def layer(name: str, kind: str, *inputs: str, **config: Any) -> dict[str, Any]:
    """One layer of a Functional file as Keras 2 writes it."""
    nodes = [[[one, 0, 0, {}] for one in inputs]] if inputs else []
    return {
        "class_name": kind,
        "config": {"name": name, **config},
        "name": name,
        "inbound_nodes": nodes,
    }


def functional(shape: list[int | None], *layers: dict[str, Any]) -> dict[str, Any]:
    """A network file; its input is `input`, its output the last layer."""
    first = layer("input", "InputLayer", batch_input_shape=[None, *shape])
    return {
        "class_name": "Functional",
        "config": {
            "name": "net",
            "layers": [first, *layers],
            "input_layers": [["input", 0, 0]],
            "output_layers": [[layers[-1]["name"], 0, 0]],
        },
        "keras_version": "2.8.0",
        "backend": "tensorflow",
    }


def chain(shape: list[int | None], *layers: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """A network file of layers one after another, named layer_1, layer_2, …"""
    made, before = [], "input"
    for number, (kind, config) in enumerate(layers, start=1):
        made.append(layer(f"layer_{number}", kind, before, **config))
        before = f"layer_{number}"
    return functional(shape, *made)
