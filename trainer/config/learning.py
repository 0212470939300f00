"""The sections `optimizer` and `loss`: how a network learns."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from trainer.config.section import Section, any_case, one_of

OPTIMIZERS = ("sgd", "rmsprop", "adagrad", "adam", "adamw", "lars", "lamb", "hessian")
OVERLAP_LOSSES = ("dice_ce", "adaptive_dice32", "log_dice", "tversky", "generalized_dice")
LOSSES = ("bce", "dice", "nll", "mse", "jaccard", "focal", "lovasz", *OVERLAP_LOSSES)
LOSSES_OF_FOREGROUND = ("bce", "dice", "jaccard", "focal", "lovasz", "mse", *OVERLAP_LOSSES)
LOSSES_OF_CLASSES = ("nll", "dice", "jaccard", "focal", "lovasz", "bce", "mse", *OVERLAP_LOSSES)
"""Those for a network of one output, and for one that has an output a class."""

SCHEDULES = (
    *("exponential", "step", "multistep", "warmup"),
    *("linearwarmup", "exponentialdecay", "polynomial", "cosine"),
)
SCHEDULES_OF_STUDIES = ("exponential", "step", "multistep", "warmup", "polynomial", "cosine")
"""Those that need no number but what a study knows."""


class LearningRateSchedule(Section):
    """How the learning rate changes: from epoch to epoch, exponentialdecay at each step."""

    type: Annotated[str, one_of("lr_scheduler", SCHEDULES), any_case(SCHEDULES)] = Field(
        description="Exponential: times gamma after each epoch. Step: times gamma after every "
        "step_size epochs. MultiStep: times gamma after each epoch of milestones. Warmup: from "
        "start_factor times the rate straight to the rate, in num_epochs. LinearWarmup: the same "
        "from init_learning_rate, but epoch e has e / num_epochs of the way behind it, so that the "
        "last one has the whole rate. ExponentialDecay: times decay_rate ** (steps / decay_steps), "
        "which changes at each step of the optimizer. Polynomial: times (1 - e / epochs) ** power "
        "after e epochs, 0 at the run's end. Cosine: times (1 + cos(pi * e / epochs)) / 2."
    )
    gamma: Annotated[float, Field(gt=0)] = Field(
        0.95, description="Exponential, Step, MultiStep: the factor."
    )
    step_size: int = Field(1, ge=1, description="Step: epochs from change to change.")
    milestones: list[Annotated[int, Field(ge=1)]] = Field(
        [], description="MultiStep: the epochs after which the rate changes."
    )
    num_epochs: int = Field(
        5, ge=1, description="Warmup, LinearWarmup: epochs until the whole rate is reached."
    )
    start_factor: float = Field(0.1, gt=0, le=1, description="Warmup: share of the rate at first.")
    init_learning_rate: float = Field(
        1e-4, ge=0, description="LinearWarmup: what the rate starts from; no epoch has it."
    )
    decay_rate: float = Field(
        0.5, gt=0, le=1, description="ExponentialDecay: the factor of decay_steps steps."
    )
    decay_steps: int | None = Field(
        None, ge=1, description="ExponentialDecay: steps of the optimizer; must be given."
    )
    power: float = Field(0.9, gt=0, description="Polynomial: the exponent.")
    verbose: bool = Field(True, description="Print the rate when it changes.")

    @property
    def told(self) -> str:
        """In words, with what acts."""
        acting = [f"{n} {getattr(self, n)}" for n in SCHEDULE_FIELDS[self.type]]
        return ", ".join([self.type, *acting])

    @model_validator(mode="after")
    def _has_its_numbers(self) -> LearningRateSchedule:
        if self.type == "multistep" and not self.milestones:
            raise ValueError("MultiStep needs milestones, like [10, 20]")
        if self.type == "exponentialdecay" and self.decay_steps is None:
            raise ValueError("ExponentialDecay needs decay_steps, like the batches of an epoch")
        return self


SCHEDULE_FIELDS: dict[str, tuple[str, ...]] = {
    "exponential": ("gamma",),
    "step": ("gamma", "step_size"),
    "multistep": ("gamma", "milestones"),
    "warmup": ("num_epochs", "start_factor"),
    "linearwarmup": ("num_epochs", "init_learning_rate"),
    "exponentialdecay": ("decay_rate", "decay_steps"),
    "polynomial": ("power",),
    "cosine": (),
}
ONE, SEVERAL = "one schedule", "several schedules"
Schedules = Annotated[
    Annotated[LearningRateSchedule, Tag(ONE)] | Annotated[list[LearningRateSchedule], Tag(SEVERAL)],
    Discriminator(lambda value: SEVERAL if isinstance(value, list) else ONE),
]
OPTIMIZER_FIELDS: dict[str, tuple[str, ...]] = {
    "sgd": ("learning_rate", "momentum", "dampening", "weight_decay", "nesterov"),
    "rmsprop": ("learning_rate", "alpha", "eps", "weight_decay", "momentum", "centered"),
    "adagrad": ("learning_rate", "lr_decay", "weight_decay"),
    "adam": ("learning_rate", "beta1", "beta2", "weight_decay", "eps", "amsgrad"),
    "adamw": ("learning_rate", "beta1", "beta2", "weight_decay", "eps", "amsgrad"),
    "lars": ("learning_rate", "momentum", "dampening", "weight_decay", "nesterov", "eta"),
    "lamb": ("learning_rate", "beta1", "beta2", "weight_decay", "eps"),
    "hessian": (
        *("max_iterations", "max_func_eval"),
        *("absolute_tolerance", "relative_tolerance"),
    ),
}
"""The constants that act, for each schedule and optimizer, in the order of the log."""


def _of(name: str) -> str:
    """Which optimizers a constant is for, in words."""
    return ", ".join(kind for kind, fields in OPTIMIZER_FIELDS.items() if name in fields)


class Optimizer(Section):
    """The optimizer and its constants; each optimizer takes those that it knows."""

    type: Annotated[str, one_of("optimizer", OPTIMIZERS), any_case(OPTIMIZERS)] = Field(
        description=f"One of {', '.join(OPTIMIZERS)}, in any case."
    )
    learning_rate: float = Field(0.01, gt=0, description="For every optimizer 0.01 if left out.")
    momentum: float = Field(0.0, ge=0, description=f"For {_of('momentum')}.")
    dampening: float = Field(0.0, description=f"For {_of('dampening')}.")
    nesterov: bool = Field(False, description=f"For {_of('nesterov')}.")
    weight_decay: float = Field(0.0, ge=0, description=f"For {_of('weight_decay')}.")
    lr_decay: float = Field(0.0, ge=0, description=f"For {_of('lr_decay')}.")
    beta1: float = Field(0.9, ge=0, lt=1, description=f"For {_of('beta1')}.")
    beta2: float = Field(0.999, ge=0, lt=1, description=f"For {_of('beta2')}.")
    eps: float = Field(1e-8, gt=0, description=f"For {_of('eps')}.")
    amsgrad: bool = Field(False, description="For adam, adamw; lamb has none and refuses it.")
    alpha: float = Field(0.99, ge=0, lt=1, description=f"For {_of('alpha')}.")
    centered: bool = Field(False, description=f"For {_of('centered')}.")
    eta: float = Field(1e-3, gt=0, description=f"For {_of('eta')}: the trust coefficient.")
    max_iterations: int = Field(2000, ge=1, description="For hessian: most iterations in a batch.")
    max_func_eval: int = Field(4000, ge=1, description="For hessian: most evaluations in a batch.")
    absolute_tolerance: float = Field(
        1e-8, ge=0, description="For hessian: a gradient this small ends a batch."
    )
    relative_tolerance: float = Field(
        1e-8, ge=0, description="For hessian: a step or change this small ends a batch."
    )
    accumulate_batches: int = Field(
        1,
        ge=1,
        le=100_000,
        description="Batches whose mean gradient makes one step; what is left at the end of an "
        "epoch makes one, too. Ours.",
    )
    lr_scheduler: Schedules | None = Field(
        None, description="One, or a list whose factors are multiplied; left out: constant."
    )

    @property
    def schedules(self) -> list[LearningRateSchedule]:
        """The schedules, none for a constant rate."""
        if self.lr_scheduler is None:
            return []
        return self.lr_scheduler if isinstance(self.lr_scheduler, list) else [self.lr_scheduler]

    @model_validator(mode="after")
    def _constants_fit(self) -> Optimizer:
        momentary = self.type in ("sgd", "lars") and self.nesterov
        if momentary and (self.momentum == 0 or self.dampening != 0):
            raise ValueError("nesterov needs a momentum above 0 and dampening 0")
        if self.type == "hessian" and self.accumulate_batches > 1:
            raise ValueError("hessian takes one batch a step; accepted: accumulate_batches 1")
        if self.type == "lamb" and self.amsgrad:
            raise ValueError("lamb has no amsgrad; leave it out")
        return self


LOSS_FIELDS: dict[str, tuple[str, ...]] = {
    "bce": ("source", "weight", "ignore_index"),
    "dice": ("source", "weight", "ignore_index", "eps"),
    "nll": ("weight", "ignore_index"),
    "mse": ("weight", "ignore_index"),
    "jaccard": ("source", "weight", "ignore_index", "eps"),
    "focal": ("source", "weight", "ignore_index", "gamma"),
    "lovasz": ("source", "ignore_index"),
    "dice_ce": ("source", "ignore_index", "eps", "include_background"),
    "adaptive_dice32": ("source", "ignore_index", "eps"),
    "log_dice": ("source", "weight", "ignore_index", "eps"),
    "tversky": ("source", "weight", "ignore_index", "eps", "alpha", "beta"),
    "generalized_dice": ("source", "ignore_index", "eps"),
}
"""The keys that act, for each loss."""

EPS_OF = {"dice_ce": 1e-6, "log_dice": 1.0}
"""What `eps` is where it is left out, for losses that publish another than 1e-7."""


def _losses_with(name: str) -> str:
    """Which losses a key is for, in words."""
    return ", ".join(function for function, fields in LOSS_FIELDS.items() if name in fields)


class Loss(Section):
    """What training makes small."""

    function: Annotated[str, one_of("loss", LOSSES), any_case(LOSSES)] = Field(
        description=f"One of {', '.join(LOSSES)}, in any case."
    )
    source: Literal["sigmoid", "softmax", "log_softmax"] | None = Field(
        None,
        description="What the output already is; left out: what the network ends in. Of a network "
        "that ends in none of these, what its output is to be taken for.",
    )
    weight: list[Annotated[float, Field(ge=0)]] | None = Field(
        None, description=f"One number a class: how much it counts. {_losses_with('weight')}."
    )
    ignore_index: int | None = Field(
        None,
        description="Targets of this class, or of this value where it is no class, do not count.",
    )
    eps: float = Field(
        1e-7,
        gt=0,
        description=f"{_losses_with('eps')}: added above and below the fraction, which keeps an "
        "empty batch finite. Left out: dice_ce 1e-6, log_dice 1.",
    )
    include_background: bool = Field(
        False,
        description="dice_ce: class 0 counts in the Dice part, too; it always does in the other.",
    )
    alpha: float = Field(0.3, ge=0, description="tversky: how much a false positive counts.")
    beta: float = Field(0.7, ge=0, description="tversky: how much a false negative counts.")
    gamma: float = Field(
        2.0, ge=0, description="focal: how much easy pixels count less; 0 is cross-entropy. Ours."
    )
    diffusion_coeff: float = Field(0.0, description="For differential equations; unused.")
    boundary_factor: float = Field(1.0, description="For differential equations; unused.")

    @model_validator(mode="after")
    def _weighs_something(self) -> Loss:
        if self.weight is not None and (not self.weight or not any(self.weight)):
            raise ValueError("weight: no class counts")
        if self.function == "tversky" and self.alpha == self.beta == 0:
            raise ValueError("tversky needs an alpha or a beta above 0")
        if "eps" not in self.model_fields_set and self.function in EPS_OF:
            object.__setattr__(self, "eps", EPS_OF[self.function])
        return self
