"""Optimizers by name, with the defaults of the configuration language."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from trainer.config import Optimizer


def build_optimizer(
    parameters: Iterable[nn.Parameter], optimizer: Optimizer
) -> torch.optim.Optimizer:
    """The torch optimizer that a configuration's optimizer section names."""
    o = optimizer
    shared: dict[str, Any] = {"lr": o.learning_rate, "weight_decay": o.weight_decay}
    adam = {**shared, "betas": (o.beta1, o.beta2), "eps": o.eps, "amsgrad": o.amsgrad}
    builders: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "sgd": lambda: torch.optim.SGD(
            parameters,
            momentum=o.momentum,
            dampening=o.dampening,
            nesterov=o.nesterov,
            **shared,
        ),
        "rmsprop": lambda: torch.optim.RMSprop(
            parameters,
            alpha=o.alpha,
            eps=o.eps,
            momentum=o.momentum,
            centered=o.centered,
            **shared,
        ),
        "adagrad": lambda: torch.optim.Adagrad(parameters, lr_decay=o.lr_decay, **shared),
        "adam": lambda: torch.optim.Adam(parameters, **adam),
        "adamw": lambda: torch.optim.AdamW(parameters, **adam),
    }
    return builders[o.type]()
