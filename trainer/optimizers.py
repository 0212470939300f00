"""Optimizers by name, with the defaults of the configuration language.

torch's, and timm's LARS and LAMB. timm's trust ratio acts only where there is weight decay unless
it is told `always_adapt`, and its LAMB clips the gradient's norm at 1 unless told not to: here the
ratio always acts and nothing is clipped, so that both are what their papers say (You et al. 2017,
2020). `hessian` is L-BFGS with a strong Wolfe line search, which finds its own step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config import Config, Optimizer
from trainer.errors import InputError
from trainer.schedules import RateSchedule


@dataclass(frozen=True)
class Stepping:
    """What makes the steps of a training: the optimizer, the scale of a loss in half precision,
    the learning rate. `steps` are those of an epoch."""

    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    rates: RateSchedule
    steps: int

    def state(self) -> dict[str, Any]:
        """What a resume needs; rates follow from the step's number."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Puts all back to where it was."""
        self.optimizer.load_state_dict(state["optimizer"])
        if state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])


def open_stepping(
    network: nn.Module, config: Config, device: torch.device, groups: Sequence[int]
) -> Stepping:
    """For a training whose samples are in `groups`, see order.py."""
    assert config.optimizer
    optimizer = build_optimizer(network.parameters(), config.optimizer)
    batches = sum(math.ceil(count / config.data.batch_size) for count in groups)
    return Stepping(
        optimizer,
        torch.amp.GradScaler(device.type, enabled=config.precision == "float16"),
        RateSchedule(optimizer, config.optimizer, config.num_epochs),
        math.ceil(batches / config.optimizer.accumulate_batches),
    )


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


def step(
    optimizer: torch.optim.Optimizer,
    compute: Callable[[], Tensor],
    again: bool,
    scaler: torch.amp.GradScaler | None = None,
) -> Tensor:
    """One step on one batch; the loss at its beginning.

    `compute` runs the network and leaves the gradient; `scaler` is that of a loss in half
    precision. L-BFGS calls `compute` many times, and what it learnt of the curvature on another
    batch misleads it: `again` False forgets that. Where it is interrupted, the parameters are put
    back to where they were.
    """
    if not isinstance(optimizer, torch.optim.LBFGS):
        loss = compute()
        if scaler is None:
            optimizer.step()
        else:
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
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
