"""The search space, and the configuration that one point of it becomes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import optuna

from study.settings import Settings
from trainer.data.folders import Layout

AUGMENT_LIGHT: list[dict[str, float]] = [
    {"random_horizontal_flip": 0.5},
    {"random_rotate": 10},
    {"random_zoom": 0.1},
]
AUGMENT_LIGHT_INPUTS: list[dict[str, float]] = [
    {"random_brightness": 0.1},
    {"random_contrast": 0.2},
]

HESSIAN_ITERATIONS = 10
"""In each batch; the language's default of 2000 is for a batch that is all the data."""


def suggest(trial: optuna.Trial, settings: Settings) -> dict[str, Any]:
    """One point: optimizer, learning_rate (log-uniform), loss, in the published order; then
    lr_scheduler where several kinds are named."""
    point: dict[str, Any] = {
        "optimizer": trial.suggest_categorical("optimizer", settings.optimizers),
        "learning_rate": trial.suggest_float(
            "learning_rate", settings.lr_min, settings.lr_max, log=True
        ),
        "loss": trial.suggest_categorical("loss", settings.losses),
    }
    if len(settings.lr_schedules) > 1:
        point["lr_scheduler"] = trial.suggest_categorical("lr_scheduler", settings.lr_schedules)
    return point


def first_point(settings: Settings) -> dict[str, Any]:
    """Trial 0: what one would try by hand, so that the search has to beat it.

    The first optimizer and loss that are named, and the rate in the middle of its range (on the
    logarithm): Adam, BCE and 1e-3 by default.
    """
    return {
        "optimizer": settings.optimizers[0],
        "learning_rate": math.sqrt(settings.lr_min * settings.lr_max),
        "loss": settings.losses[0],
        **({"lr_scheduler": settings.lr_schedules[0]} if len(settings.lr_schedules) > 1 else {}),
    }


def test_folders(layout: Layout) -> tuple[Path, Path | None]:
    """Inputs and targets of the test images; in a data set of one part, those of all."""
    if layout.test_inputs:
        return layout.test_inputs, layout.test_targets
    return layout.inputs, layout.targets


def folder_text(path: Path) -> str:
    """A folder as configurations write it, with a slash at its end."""
    return f"{path}/"


def schedule_sections(kinds: str, settings: Settings) -> list[dict[str, Any]]:
    """What `lr_scheduler` says for kinds like warmup+step: with epochs that suit the trial's.

    A step changes the rate twice, at a third and two thirds; a multistep at a half and three
    quarters; a warm-up takes a tenth.
    """
    epochs, gamma = settings.num_epochs, settings.lr_scheduler_gamma
    told: dict[str, dict[str, Any]] = {
        "exponential": {"gamma": 0.95 if gamma is None else gamma},
        "step": {"gamma": 0.1 if gamma is None else gamma, "step_size": max(1, -(-epochs // 3))},
        "multistep": {
            "gamma": 0.1 if gamma is None else gamma,
            "milestones": sorted({max(1, epochs // 2), max(1, epochs * 3 // 4)}),
        },
        "warmup": {"num_epochs": max(1, epochs // 10), "start_factor": 0.1},
        "polynomial": {"power": 0.9},
        "cosine": {},
    }
    names = {"multistep": "MultiStep"}
    return [
        {"type": names.get(kind, kind.capitalize()), **told[kind], "verbose": True}
        for kind in kinds.split("+")
        if kind != "none"
    ]


def loss_section(function: str, settings: Settings) -> dict[str, Any]:
    """The loss, and what the network ends in: sigmoid for foreground alone, else softmax."""
    if len(settings.classes) <= 2:
        return {"function": function, "source": "sigmoid"}
    return {"function": function, "source": "log_softmax" if function == "nll" else "softmax"}


def render(
    params: dict[str, Any],
    settings: Settings,
    layout: Layout,
    *,
    layers: str,
    split: Path | None,
    load: str | None,
    foreign: bool,
) -> dict[str, Any]:
    """The configuration of one trial, in the published language.

    `split` None (a foreign image) means that the folders say all: trained on one, chosen on the
    other. Input folders are written as their real absolute paths.
    """
    data: dict[str, Any] = {
        "type": "images",
        "input_path": folder_text(layout.inputs.resolve()),
        "target_path": folder_text(layout.targets.resolve()),
    }
    if layout.test_inputs and layout.test_targets and settings.select_on == "test":
        data["test_input_path"] = folder_text(layout.test_inputs.resolve())
        data["test_target_path"] = folder_text(layout.test_targets.resolve())
    elif settings.select_on == "test":  # one folder only: its part `test`, which the split names
        data["test_input_path"] = data["input_path"]
        data["test_target_path"] = data["target_path"]
    light = settings.augment == "light" and not foreign
    size = {"resize": [settings.image_size, settings.image_size]}
    data |= {
        **({"split": str(split)} if split else {}),
        "batch_size": settings.batch_size,
        "test_batch_size": 2 * settings.batch_size,
        "preload": True,
        "target_grayscale": True,
        "target_is_mask": True,
        "transforms": [size, *(AUGMENT_LIGHT if light else [])],
        **({"input_transforms": AUGMENT_LIGHT_INPUTS} if light else {}),
    }
    optimizer: dict[str, Any] = {
        "type": params["optimizer"],
        "learning_rate": params["learning_rate"],
    }
    if params["optimizer"] == "hessian":
        optimizer["max_iterations"] = HESSIAN_ITERATIONS
    kinds = params.get("lr_scheduler") or (settings.lr_schedules or ("none",))[0]
    if sections := schedule_sections(kinds, settings):
        optimizer["lr_scheduler"] = sections if len(sections) > 1 else sections[0]
    checkpoints: dict[str, Any] = {"save": "checkpoints/", "interval": 1} if foreign else {}
    if load:
        checkpoints["load"] = load
    return {
        "neural_network": {
            "outfile": "out.txt",
            "num_epochs": settings.num_epochs,
            "layers": layers,
            **({"checkpoints": checkpoints} if checkpoints else {}),
            "data": data,
            "optimizer": optimizer,
            "loss": loss_section(params["loss"], settings),
        }
    }


def render_test(
    settings: Settings,
    layout: Layout,
    loss: str,
    *,
    load: str,
    split: str | None,
    output: str | None,
    folders: tuple[str, str | None] | None = None,
    layers: str | None = None,
) -> dict[str, Any]:
    """The configuration that evaluates and predicts the test images with a checkpoint.

    `folders` are the texts of test inputs and targets (default: their real absolute paths); without
    targets the test images are predicted only. With `layers` (a foreign image) the network and its
    size are written out.
    """
    inputs, targets = test_folders(layout)
    texts = folders or (
        folder_text(inputs.resolve()),
        folder_text(targets.resolve()) if targets else None,
    )
    size = {"resize": [settings.image_size, settings.image_size]}
    return {
        "neural_network": {
            **({"layers": layers} if layers else {}),
            "checkpoints": {"load": load},
            "data": {
                "type": "images",
                "test_input_path": texts[0],
                **({"test_target_path": texts[1]} if texts[1] else {}),
                **({"test_output_path": output} if output else {}),
                **({"split": split} if split else {}),
                "test_batch_size": 2 * settings.batch_size,
                "preload": True,
                "target_grayscale": True,
                "target_is_mask": True,
                **({"transforms": [size]} if layers else {}),
            },
            "loss": loss_section(loss, settings),
        }
    }
