"""The layer classes of Keras: what each option means, and the torch module that computes it.

A layer class is one function and one line in LAYERS. The function reads the options, checks them
against the shapes that come in, and returns a `Layer`: plain facts, and functions that import torch
when they are called. Torch-free until then.

L1 and L2 penalties of a file are read and not applied: they belong to the loss (weight decay of the
optimizer is the usual replacement).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from trainer.networks.keras.convolution import (
    convolution_layer,
    depthwise_layer,
    separable_layer,
    transposed_layer,
)
from trainer.networks.keras.layer import Build
from trainer.networks.keras.merging import concatenate_layer, merging_layer
from trainer.networks.keras.normalization import (
    batch_norm_layer,
    instance_norm_layer,
    layer_norm_layer,
)
from trainer.networks.keras.pointwise import (
    activation_layer,
    dense_layer,
    dropout_layer,
    elu_layer,
    leaky_relu_layer,
    named_layer,
    relu_layer,
    softmax_layer,
)
from trainer.networks.keras.pooling import average_pool_layer, global_pool_layer, max_pool_layer
from trainer.networks.keras.resizing import (
    cropping_layer,
    flatten_layer,
    reshape_layer,
    upsampling_layer,
    zero_padding_layer,
)

if TYPE_CHECKING:
    pass

LAYERS: dict[str, Build] = {
    "Conv1D": partial(convolution_layer, 1),
    "Conv2D": partial(convolution_layer, 2),
    "Conv3D": partial(convolution_layer, 3),
    "DepthwiseConv1D": partial(depthwise_layer, 1),
    "DepthwiseConv2D": partial(depthwise_layer, 2),
    "DepthwiseConv3D": partial(depthwise_layer, 3),
    "SeparableConv1D": partial(separable_layer, 1),
    "SeparableConv2D": partial(separable_layer, 2),
    "SeparableConv3D": partial(separable_layer, 3),
    "Conv1DTranspose": partial(transposed_layer, 1),
    "Conv2DTranspose": partial(transposed_layer, 2),
    "Conv3DTranspose": partial(transposed_layer, 3),
    "MaxPooling1D": partial(max_pool_layer, 1),
    "MaxPooling2D": partial(max_pool_layer, 2),
    "MaxPooling3D": partial(max_pool_layer, 3),
    "AveragePooling1D": partial(average_pool_layer, 1),
    "AveragePooling2D": partial(average_pool_layer, 2),
    "AveragePooling3D": partial(average_pool_layer, 3),
    "GlobalMaxPooling1D": partial(global_pool_layer, 1, True),
    "GlobalMaxPooling2D": partial(global_pool_layer, 2, True),
    "GlobalMaxPooling3D": partial(global_pool_layer, 3, True),
    "GlobalAveragePooling1D": partial(global_pool_layer, 1, False),
    "GlobalAveragePooling2D": partial(global_pool_layer, 2, False),
    "GlobalAveragePooling3D": partial(global_pool_layer, 3, False),
    "UpSampling1D": partial(upsampling_layer, 1),
    "UpSampling2D": partial(upsampling_layer, 2),
    "UpSampling3D": partial(upsampling_layer, 3),
    "ZeroPadding1D": partial(zero_padding_layer, 1),
    "ZeroPadding2D": partial(zero_padding_layer, 2),
    "ZeroPadding3D": partial(zero_padding_layer, 3),
    "Cropping1D": partial(cropping_layer, 1),
    "Cropping2D": partial(cropping_layer, 2),
    "Cropping3D": partial(cropping_layer, 3),
    "Dense": dense_layer,
    "BatchNormalization": batch_norm_layer,
    "LayerNormalization": layer_norm_layer,
    "InstanceNormalization": instance_norm_layer,
    "Activation": activation_layer,
    "ReLU": relu_layer,
    "LeakyReLU": leaky_relu_layer,
    "ELU": elu_layer,
    "Softmax": partial(softmax_layer, "softmax"),
    "Log_Softmax": partial(softmax_layer, "log_softmax"),
    "LogSoftmax": partial(softmax_layer, "log_softmax"),
    "Sigmoid": partial(named_layer, "sigmoid"),
    "Tanh": partial(named_layer, "tanh"),
    "Swish": partial(named_layer, "swish"),
    "Add": partial(merging_layer, "add"),
    "Subtract": partial(merging_layer, "subtract"),
    "Multiply": partial(merging_layer, "multiply"),
    "Average": partial(merging_layer, "average"),
    "Maximum": partial(merging_layer, "maximum"),
    "Minimum": partial(merging_layer, "minimum"),
    "Concatenate": concatenate_layer,
    "Flatten": flatten_layer,
    "Reshape": reshape_layer,
    "Dropout": partial(dropout_layer, None),
    "SpatialDropout1D": partial(dropout_layer, 1),
    "SpatialDropout2D": partial(dropout_layer, 2),
    "SpatialDropout3D": partial(dropout_layer, 3),
}
"""Every class but InputLayer, which graph.py reads."""
