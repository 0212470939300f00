"""What the configuration language is, for editors, and what one configuration does. Torch-free.

python -m trainer --schema           the JSON Schema, which editors complete and check by
python -m trainer --check CONFIG     each key that a configuration has: whether it acts
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from trainer.config import LOSS_FIELDS, OPTIMIZER_FIELDS, SCHEDULE_FIELDS, Config

ALWAYS_UNUSED = {
    "debug": "no network graph is written",
    "debug_interval": "no network graph is written",
    "data.preload": "what fits into memory is read first in any case",
    **{
        f"data.{key}": "for differential equations"
        for key in ("domain_size", "num_examples", "num_test_examples", "bc_frequency", "bc_type")
    },
    "loss.diffusion_coeff": "for differential equations",
    "loss.boundary_factor": "for differential equations",
}
OF_TRAINING = (
    *(
        "outfile",
        "num_epochs",
        "optimizer",
        "mlperf_log",
        "tensorboard",
        "checkpoints.save",
        "checkpoints.interval",
    ),
    *("data.batch_size", "data.target_path", "data.training_tag"),
)
OF_FILES = tuple(
    f"data.{name}" for name in ("target_path", "test_target_path", "grayscale", "input_grayscale")
)
"""Keys that say nothing of prepared volumes."""

OF_TEST = ("data.test_target_path", "data.test_tag", "data.testing_tag", "data.test_batch_size")
MOST_COLUMNS = 40
"""Longer values move what stands behind them."""

TAGS = ("data.training_tag", "data.test_tag", "data.testing_tag")


def schema() -> dict[str, Any]:
    """The JSON Schema of a configuration file."""
    content = Config.model_json_schema(ref_template="#/$defs/{model}")
    definitions = content.pop("$defs", {})
    definitions["Config"] = content
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration of rml-optimization's trainer",
        "type": "object",
        "properties": {"neural_network": {"$ref": "#/$defs/Config"}},
        "required": ["neural_network"],
        "additionalProperties": False,
        "$defs": definitions,
    }


def keys(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each key that a configuration has, with dots and [n], and its value, section by section."""
    for name in type(section).model_fields:
        if name not in section.model_fields_set:
            continue
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from keys(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
            for number, item in enumerate(value):
                yield from keys(item, f"{prefix}{name}[{number}].")
        else:
            yield f"{prefix}{name}", value


def why_unused(key: str, config: Config) -> str | None:
    """Why a key of this configuration does nothing; None where it acts."""
    section, _, name = key.rpartition(".")
    inputs, targets = config.data.kinds
    if reason := ALWAYS_UNUSED.get(key):
        return reason
    if not config.trains and key.startswith(OF_TRAINING):
        return "nothing is trained"
    if config.data.test_input_path is None and config.data.split is None and key in OF_TEST:
        return "nothing is evaluated"
    volumes = config.data.patches is not None
    if key.startswith("evaluation."):
        if config.data.test_input_path is None and config.data.split is None:
            return "nothing is evaluated"
        of_volumes = ("evaluation.window", "evaluation.hd95", "evaluation.surface_dice_mm")
        if inputs != "hdf5" and key.startswith(of_volumes):
            return f"inputs are {inputs}; it is for prepared volumes"
    if volumes and key in OF_FILES:
        return "prepared volumes hold their labels, and their channels"
    if key in TAGS and targets != "labels":
        return f"targets are {targets}; it is for labels"
    if key == "data.target_grayscale" and inputs != "images":
        return f"inputs are {inputs}"
    if key.startswith(("data.slicers", "data.hdf5_")) and inputs not in ("numpy", "hdf5"):
        return f"inputs are {inputs}; it is for numpy and hdf5"
    if key == "data.hdf5_precision" and not config.data.hdf5_outfile:
        return "there is no hdf5_outfile"
    if (
        section.startswith("data.")
        and name.startswith(("random_", "jitter_"))
        and not config.trains
    ):
        return "nothing is trained, and it acts in training only"
    if section == "submission" and config.mlperf_log is None:
        return "there is no mlperf_log"
    if key == "tensorboard_interval" and config.tensorboard is None:
        return "there is no tensorboard"
    if section.startswith("optimizer"):
        return _of_optimizer(section, name, config)
    if section == "loss" and config.loss and name != "function":
        function = config.loss.function
        return None if name in LOSS_FIELDS[function] else f"{function} has none"
    return None


def _of_optimizer(section: str, name: str, config: Config) -> str | None:
    assert config.optimizer
    kind = config.optimizer.type
    if section == "optimizer":
        if name == "type" or name in OPTIMIZER_FIELDS[kind]:
            return None
        return "it finds its own step" if name == "learning_rate" else f"{kind} has none"
    if kind == "hessian":
        return "hessian finds its own step"
    number = section.removeprefix("optimizer.lr_scheduler").strip("[]")
    schedule = config.optimizer.schedules[int(number or 0)]
    if name in ("type", "verbose") or name in SCHEDULE_FIELDS[schedule.type]:
        return None
    return f"{schedule.type} has none"


def _written(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", errors="backslashreplace").decode()


def told(config: Config) -> Iterator[str]:
    """A line a key: the key, its value, and whether it acts."""
    rows = [(key, _written(value), why_unused(key, config)) for key, value in keys(config)]
    keys_width = max(len(key) for key, *_ in rows)
    values_width = min(MOST_COLUMNS, max(len(value) for _, value, _ in rows))
    for key, value, reason in rows:
        acts = "acts" if reason is None else f"unused: {reason}"
        yield f"{key:<{keys_width}}  {value:<{values_width}}  {acts}"
    unused = sum(reason is not None for *_, reason in rows)
    yield f"{len(rows)} keys, {len(rows) - unused} act, {unused} unused"
