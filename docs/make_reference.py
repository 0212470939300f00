"""Prints docs/configuration.md from the descriptions beside the fields of trainer/config/.

python docs/make_reference.py > docs/configuration.md        (a test compares them)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from trainer.config import (
    Checkpoints,
    Config,
    Data,
    Evaluation,
    LearningRateSchedule,
    Loss,
    Optimizer,
    Patches,
    RandomPatches,
    Slicer,
    Slices,
    Submission,
    Transform,
    Window,
)
from trainer.config.volumes import RandomAffine, RandomFactor, RandomNoise
from trainer.networks.description import Network

SECTIONS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("neural_network", Config),
    ("checkpoints", Checkpoints),
    ("data", Data),
    ("data.transforms[], one key each", Transform),
    ("data.transforms[].random_patches", RandomPatches),
    ("data.transforms[].random_affine", RandomAffine),
    ("data.transforms[].random_factor", RandomFactor),
    ("data.transforms[].random_noise", RandomNoise),
    ("data.patches", Patches),
    ("data.slices", Slices),
    ("data.slicers[]", Slicer),
    ("evaluation", Evaluation),
    ("evaluation.window", Window),
    ("optimizer", Optimizer),
    ("optimizer.lr_scheduler, one or a list", LearningRateSchedule),
    ("loss", Loss),
    ("submission", Submission),
    ("The network file (layers)", Network),
)

HEAD = """# The configuration

One JSON object `neural_network`, the language of rmldnn. Paths are resolved against the folder in
which the trainer is started. An unknown key is an error that names the nearest known one; a key
that is known but unused passes. This page is made by `docs/make_reference.py` from the code.
"""


def default(field: FieldInfo) -> str:
    """How a field's default is written in JSON; a dash where it must be given."""
    if field.is_required():
        return "-"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "{}"
    return "left out" if value is None else f"`{json.dumps(value)}`"


def page() -> str:
    """The whole page."""
    lines = [HEAD]
    for title, model in SECTIONS:
        lines += [f"## {title}\n", "| key | default | meaning |", "|---|---|---|"]
        for name, field in model.model_fields.items():
            lines.append(f"| `{name}` | {default(field)} | {field.description} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(page(), end="")
