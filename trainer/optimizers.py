"""Optimizers by name, with the defaults of the configuration language.

torch's, and timm's LARS and LAMB. timm's trust ratio acts only where there is weight decay unless
it is told `always_adapt`, and its LAMB clips the gradient's norm at 1 unless told not to: here the
ratio always acts and nothing is clipped, so that both are what their papers say (You et al. 2017,
2020). `hessian` is L-BFGS with a strong Wolfe line search, which finds its own step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config import Optimizer
from trainer.errors import InputError


def build_optimizer(
    parameters: Iterable[nn.Parameter], optimizer: Optimizer
) -> torch.optim.Optimizer:
    """The optimizer that a configuration's optimizer section names, over what is trainable.

    Raises InputError where nothing is.
    """
    o = optimizer
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained:
        raise InputError("layers", "no parameter is trainable", "one or more", "unfreeze a layer")
    if o.type == "hessian":
        for parameter in trained:  # torch's L-BFGS views each as a row, which channels last is not
            parameter.data = parameter.data.contiguous()
    shared: dict[str, Any] = {"lr": o.learning_rate, "weight_decay": o.weight_decay}
    betas: dict[str, Any] = {**shared, "betas": (o.beta1, o.beta2), "eps": o.eps}
    momentum: dict[str, Any] = {
        **shared,
        "momentum": o.momentum,
        "dampening": o.dampening,
        "nesterov": o.nesterov,
    }
    builders: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "sgd": lambda: torch.optim.SGD(trained, **momentum),
        "rmsprop": lambda: torch.optim.RMSprop(
            trained,
            alpha=o.alpha,
            eps=o.eps,
            momentum=o.momentum,
            centered=o.centered,
            **shared,
        ),
        "adagrad": lambda: torch.optim.Adagrad(trained, lr_decay=o.lr_decay, **shared),
        "adam": lambda: torch.optim.Adam(trained, amsgrad=o.amsgrad, **betas),
        "adamw": lambda: torch.optim.AdamW(trained, amsgrad=o.amsgrad, **betas),
        "lars": lambda: _timm("Lars")(trained, trust_coeff=o.eta, always_adapt=True, **momentum),
        "lamb": lambda: _timm("Lamb")(trained, max_grad_norm=None, always_adapt=True, **betas),
        "hessian": lambda: torch.optim.LBFGS(
            trained,
            max_iter=o.max_iterations,
            max_eval=o.max_func_eval,
            tolerance_grad=o.absolute_tolerance,
            tolerance_change=o.relative_tolerance,
            line_search_fn="strong_wolfe",
        ),
    }
    return builders[o.type]()


def _timm(name: str) -> Any:
    from trainer.networks.smp import mend_torchvision

    mend_torchvision()
    import timm.optim  # a second to import

    return getattr(timm.optim, name)


def step(optimizer: torch.optim.Optimizer, compute: Callable[[], Tensor], again: bool) -> Tensor:
    """One step on one batch; the loss at its beginning.

    `compute` runs the network and leaves the gradient. L-BFGS calls it many times, and what it
    learnt of the curvature on another batch misleads it: `again` False forgets that. Where it is
    interrupted, the parameters are put back to where they were.
    """
    if not isinstance(optimizer, torch.optim.LBFGS):
        loss = compute()
        optimizer.step()
        return loss
    if not again:
        optimizer.state.clear()
    parameters = optimizer.param_groups[0]["params"]
    before = [parameter.detach().clone() for parameter in parameters]

    def closure() -> Tensor:
        with torch.enable_grad():
            return compute()

    try:
        return optimizer.step(closure)
    except BaseException:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
        raise
