"""Weights from HDF5 files of Keras, as the state of a network's module.

Read are the layout of Keras 2 (`model.save("x.h5")`: groups under /model_weights; `save_weights`:
the same at the root), through `layer_names` and `weight_names`, and `.weights.h5` of Keras 3
(/layers/CLASS/vars/0, 1, …, where the attribute `name` has the layer's name).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainer.errors import InputError
from trainer.networks.keras.graph import Graph, Node, escaped
from trainer.networks.keras.layer import Parameter

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[np.float32]
SUFFIXES = (".h5", ".hdf5")
ACCEPTED = "weights of Keras: model.save('x.h5') or model.save_weights('x.h5')"


def torch_array(parameter: Parameter, array: NDArray[Any]) -> NDArray[Any]:
    """Keras's array of a parameter in torch's order of axes; its shape must be `keras_shape`."""
    return np.ascontiguousarray(array.transpose(parameter.axes).reshape(parameter.shape))


def keras_array(parameter: Parameter, array: NDArray[Any]) -> NDArray[Any]:
    """The other way round."""
    order = [parameter.keras_shape[axis] for axis in parameter.axes]
    back = sorted(range(len(order)), key=parameter.axes.__getitem__)
    return np.ascontiguousarray(array.reshape(order).transpose(back))


def read_h5(path: Path) -> dict[str, Any]:
    """{"keras": {layer: {name of a weight: array as Keras lays it out}}}, and "network" with the
    network file's text where the file has it. Raises InputError for another kind of file."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            root = file.get("model_weights", file)
            if "layer_names" in root.attrs or "layer_names0" in root.attrs:
                layers = {name: _by_name(root[name]) for name in _texts(root, "layer_names")}
            elif "layers" in file:
                layers = _numbered(file["layers"], path)
            else:
                raise InputError(str(path), "has no layer_names: it is not of Keras", ACCEPTED)
            found: dict[str, Any] = {"keras": layers}
            if "model_config" in file.attrs:
                found["network"] = {"network": "keras", "keras": _text(file.attrs["model_config"])}
            return found
    except (OSError, KeyError, ValueError, TypeError, AttributeError, UnicodeDecodeError) as error:
        found_fault = f"cannot be read as weights of Keras ({type(error).__name__}: {error})"
        raise InputError(str(path), found_fault, ACCEPTED) from None


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _texts(group: Any, name: str) -> list[str]:
    """An attribute with a list of names, which Keras cuts into name0, name1, … where it is long."""
    if name in group.attrs:
        return [_text(one) for one in group.attrs[name]]
    texts, part = [], 0
    while f"{name}{part}" in group.attrs:
        texts += [_text(one) for one in group.attrs[f"{name}{part}"]]
        part += 1
    return texts


def _array(dataset: Any) -> Array:
    return np.asarray(dataset[()], np.float32)


def _by_name(group: Any) -> dict[str, Array]:
    return {
        name.rpartition("/")[2].partition(":")[0]: _array(group[name])
        for name in _texts(group, "weight_names")
    }


def _numbered(layers: Any, path: Path) -> dict[str, dict[str, Array]]:
    found: dict[str, dict[str, Array]] = {}
    for group in layers.values():
        weights = group.get("vars")
        if weights is None or not len(weights):
            continue
        if "name" not in weights.attrs:
            told = "is a .weights.h5 without the layers' names"
            raise InputError(str(path), told, ACCEPTED, "save it again with Keras 3.6 or later")
        numbers = sorted(weights, key=int)
        found[_text(weights.attrs["name"])] = {key: _array(weights[key]) for key in numbers}
    return found


def state_of(graph: Graph, layers: dict[str, dict[str, Array]]) -> dict[str, Tensor]:
    """What the file has of the network's parameters, by torch's names.

    An array of another shape than the network's keeps another one, for the message.
    """
    import torch

    state: dict[str, Tensor] = {}
    for node in graph.nodes:
        arrays = layers.get(node.name, {})
        for parameter, array in _matched(node, arrays):
            fits = array.shape == parameter.keras_shape
            if fits:
                value = torch_array(parameter, array)
            elif array.ndim == len(parameter.axes):
                value = np.ascontiguousarray(array.transpose(parameter.axes))
            else:
                value = array
            state[f"{escaped(node.name)}.{parameter.name}"] = torch.from_numpy(value)
    return state


def _matched(node: Node, arrays: dict[str, Array]) -> list[tuple[Parameter, Array]]:
    """By name; by number where the names are others, as Keras 3 and Keras 1 have them."""
    by_name = {parameter.keras: parameter for parameter in node.layer.parameters}
    if set(arrays) <= set(by_name):
        return [(by_name[name], array) for name, array in arrays.items()]
    written = [parameter for parameter in node.layer.parameters if parameter.in_file]
    if len(written) == len(arrays):
        return list(zip(written, arrays.values(), strict=True))
    return [(by_name[name], array) for name, array in arrays.items() if name in by_name]
