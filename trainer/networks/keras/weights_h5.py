"""Weights from HDF5 files of Keras, as the state of a network's module.

Read are the layout of Keras 2 (`model.save("x.h5")`: groups under /model_weights; `save_weights`:
the same at the root), through `layer_names` and `weight_names`, and `.weights.h5` of Keras 3
(/layers/NAME/vars/0, 1, …). The arrays are Keras's (channels last); `torch_array` turns them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.networks.keras.layers import Parameter


def torch_array(parameter: Parameter, array: NDArray[Any]) -> NDArray[Any]:
    """Keras's array of a parameter in torch's order of axes; its shape must be `keras_shape`."""
    return np.ascontiguousarray(array.transpose(parameter.axes).reshape(parameter.shape))


def keras_array(parameter: Parameter, array: NDArray[Any]) -> NDArray[Any]:
    """The other way round."""
    order = [parameter.keras_shape[axis] for axis in parameter.axes]
    return np.ascontiguousarray(array.reshape(order).transpose(np.argsort(parameter.axes)))
