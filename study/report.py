"""What a study prints before it starts and when it has ended."""

from __future__ import annotations

import shlex
import shutil
from math import log
from pathlib import Path
from typing import Any

from rich.console import Console
from tabulate import tabulate

from launchers.choice import Place
from launchers.mounts import mounts
from study import paste, slices, statistics
from study.data_kinds import AnyDataset
from study.dataset import Dataset, score_of_nothing
from study.records import MODEL_FILE, TrialRecord, checkpoint_of, run_name
from study.resources import megabytes
from study.settings import Settings
from study.slots import Slot, gpus
from study.space import first_points
from study.split import crossings
from study.start_weights import StartWeights
from study.statistics import told
from study.storage import masked
from study.view import duration, settings_of
from study.volumes import BASE_FILE
from trainer.config.override import value_at
from trainer.data.split import Split, patient_of
from trainer.metrics import ImageScore, VolumeScore, dice, mean
from trainer.networks.description import parse_network
from trainer.networks.keras.graph import is_keras

MOST_BINDS = 8
SIZE_ROWS = {
    "images": "Image size, batch size",
    "volumes": "Crop size, batch size",
    "slices": "Slice size, batch size",
}
IN_A_BATCH = {"volumes": "crops", "slices": "slices"}
EDGE = 0.05
"""A best rate within this share of its range (on the logarithm) lies at an edge."""


def print_grid(rows: list[tuple[str, str]], console: Console) -> None:
    """A table of names and what is told of them."""
    width = min(100, max(40, shutil.get_terminal_size((120, 24)).columns - 36))
    console.print(
        tabulate(rows, tablefmt="grid", maxcolwidths=[None, width], disable_numparse=True),
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _parts(dataset: Dataset, split: Split) -> str:
    where = "the part test of the same folder" if dataset.test is None else "its own folder"
    if not dataset.test_has_truth:
        where = "without masks: predicted only"
    parts = f"{len(split.parts.training)} training, "
    if split.select_on == "validation":
        parts += f"{len(split.parts.validation)} validation (chosen on), "
    return parts + f"{len(split.parts.test)} test ({where})"


def _data_rows(dataset: AnyDataset, split: Split) -> list[tuple[str, str]]:
    if not isinstance(dataset, Dataset):
        return dataset.rows(split.parts, split.select_on)
    sizes = [size for images in dataset.all_images for size in images.sizes]
    widths, heights = [s[0] for s in sizes], [s[1] for s in sizes]
    empty = sum(int(images.empty.sum()) for images in dataset.images_with_truth)
    scored = sum(len(images) for images in dataset.images_with_truth)
    shares = [float(s) for images in dataset.images_with_truth for s in images.foreground]
    evaluated = dataset.test if split.select_on == "test" and dataset.test else dataset.train
    chosen = split.parts.validation if split.select_on == "validation" else split.parts.test
    nothing = score_of_nothing(evaluated, chosen)
    return [
        ("Images", f"{len(sizes)}: {_parts(dataset, split)}"),
        (
            "Sizes",
            f"{min(widths)}x{min(heights)} to {max(widths)}x{max(heights)} pixels",
        ),
        _mask_row(dataset),
        ("Masks without foreground", f"{empty} of {scored}"),
        ("Foreground", f"{sum(shares) / len(shares):.1%} of the pixels"),
        ("Predicting nothing scores", f"accuracy {nothing:.3f}, foreground Dice 0"),
        ("Images kept together", _groups(dataset, split)),
        *_class_rows_of_parts(dataset, split),
    ]


def _class_rows_of_parts(dataset: Dataset, split: Split) -> list[tuple[str, str]]:
    """In how many images of each part a class is, where there are several."""
    rows = []
    train, test = dataset.train, dataset.test or dataset.train
    for number, name in enumerate(dataset.masks.names[1:] if dataset.masks.outputs > 1 else ()):
        told = []
        for part, images in (("training", train), ("validation", train), ("test", test)):
            names = set(getattr(split.parts, part))
            if not names or (part == "test" and not dataset.test_has_truth):
                continue
            members = [n in names for n in images.names]
            count = int(images.has_class[members, number].sum())
            told.append(f"{count or 'NO'} {part}")
        rows.append((f"Images with {name}", ", ".join(told)))
    return rows


def _mask_row(dataset: Dataset) -> tuple[str, str]:
    """What the masks hold."""
    shares = dict(dataset.mask_shares)
    if dataset.masks.classes:
        told = [f"{n} {shares.get(i, 0):.1%}" for i, n in enumerate(dataset.masks.names)]
        return ("Classes", ", ".join(told))
    values = ", ".join(f"{v} ({s:.1%})" for v, s in dataset.mask_shares[:6])
    more = f" and {len(shares) - 6} more" if len(shares) > 6 else ""
    assert dataset.masks.threshold is not None
    above = f"above {dataset.masks.threshold:g} is foreground"
    return ("Mask values", f"{values}{more}; {above}")


def _groups(dataset: Dataset, split: Split) -> str:
    """Near-identical images and groups, and where a group is in two parts."""
    found = crossings(dataset, split.parts, split.group_by)
    by = f" or alike in --group-by {split.group_by}" if split.group_by else ""
    told = [f"{found['groups']} groups of near-identical images{by}"]
    if found["alone"]:
        told.append(f"{found['alone']} names do not match --group-by and stand alone")
    if found["shared"]:
        told.append(f"{found['shared']} TEST IMAGES SHARE A GROUP with training images")
    if found["leaks"]:
        told.append(f"{found['leaks']} VALIDATION IMAGES have one of their group in training")
    return "; ".join(told)


def print_settings(
    settings: Settings,
    place: Place,
    slot: Slot,
    dataset: AnyDataset,
    split: Split,
    start: StartWeights,
    network_size: dict[str, int] | None,
    disk_needed: int,
    disk_free: int,
    console: Console,
) -> None:
    """The settings of a study, what was found in its data, and where it will run."""
    s = settings
    schedule = " or ".join(s.lr_schedules) or "none"
    if s.lr_schedules and s.lr_scheduler_gamma is not None:
        schedule += f", gamma {s.lr_scheduler_gamma:g}"
    on = (
        f"the validation {s.noun}"
        if s.select_on == "validation"
        else f"{_optimistic(s)} (--select-on test, the published protocol): the score is optimistic"
    )
    size = f", {network_size['parameters'] / 1e6:.1f} M parameters" if network_size else ""
    size = ", your own code; its size is known when a trial runs" if start.module else size
    big = ""
    if not s.gpu and s.kind == "images" and s.layers.name == "unet_small.json":
        big = "; the big one: --layers ./layers/resunet.json --image-size 256"
    if not s.gpu and s.kind == "slices" and s.layers.name == "unet2d_brain.json":
        big = "; a fast one: --layers ./layers/unet_small.json"
    searched = [
        ("Optimizers", ", ".join(s.optimizers)),
        ("Losses", ", ".join(s.losses)),
        ("Learning rate", f"{s.lr_min:g} to {s.lr_max:g}, log-uniform"),
        ("Learning rate schedule", schedule),
    ]
    if s.space:
        searched = [("Search space", s.space.told)]
    rows = [
        ("Study", s.study_name),
        ("Trials", f"{s.num_trials} of {s.num_epochs} epochs"),
        *searched,
        ("Trial 0", f"{settings_of(first_points(s)[0])}: what the search has to beat"),
        ("Command", str(s.trial_command))
        if s.trial_command
        else ("Network", f"{s.layers}{size}{big}"),
        ("Weights", start.label),
        ("Base configuration", _base(s))
        if s.base is not None
        else ("Augmentation", "none (foreign image)" if place.foreign else s.augment),
        (SIZE_ROWS[s.kind], _seen(s, start, dataset)),
        ("Chosen on", f"{on}, by {s.metric}"),
        ("Pruning", "median, after 5 complete trials" if s.prune else "off"),
        ("Seed", str(s.seed)),
        ("Time limit", duration(s.timeout_seconds) if s.timeout_seconds else "none"),
        ("Data", str(s.data)),
        *_data_rows(dataset, split),
        ("Launcher", f"{place.launcher.name}: {place.why}"),
        ("Device, threads", f"{_device(slot)}, {slot.threads} CPU threads a trial"),
        ("Disk", f"about {megabytes(disk_needed)} needed, {megabytes(disk_free)} free"),
        ("Storage", _storage(s.storage)),
    ]
    print_grid(rows, console)


def _optimistic(settings: Settings) -> str:
    return f"THE TEST {settings.noun.upper()}"


def _base(settings: Settings) -> str:
    """Where what is not searched comes from."""
    if settings.config or settings.kind != "slices":
        return str(settings.config or settings.data / BASE_FILE)
    return f"{slices.BASE}, with batches that fit these slices"


def _seen(settings: Settings, start: StartWeights, dataset: AnyDataset) -> str:
    """What the network sees at a time."""
    batch = settings.batch_size
    if settings.base is not None and not settings.batch_size_given:
        batch = value_at(settings.base, "data.batch_size") or batch
    if not isinstance(dataset, Dataset):
        return f"{dataset.seen(settings)}, {batch} {IN_A_BATCH[settings.kind]}"
    side = settings.image_size
    return f"{side}x{side} pixels, {_channels(start)}, {batch} images"


def _channels(start: StartWeights) -> str:
    if is_keras(start.layers):
        return "grey" if parse_network(start.layers, "layers").in_channels == 1 else "colour"
    return "grey" if start.layers["in_channels"] == 1 else "colour"


def _device(slot: Slot) -> str:
    if slot.device == "mps":
        return gpus()[0]
    if slot.device != "cpu":
        return f"GPU {slot.device.partition(':')[2]}, {gpus()[0]}"
    return "CPU (--no-gpu)" if gpus() else "CPU (no GPU was found)"


def _storage(url: str) -> str:
    shown = masked(url)
    if shown != url:
        return f"{shown} (watch it: optuna-dashboard with your --storage)"
    return f"{url} (watch it: optuna-dashboard {shlex.quote(url)})"


def _rows_of_volumes(
    name: str, result: dict[str, Any] | None, classes: list[str]
) -> list[tuple[str, str]]:
    """The scores of a part, each case counting once."""
    scores = [VolumeScore.from_dict(one) for one in (result or {}).get("images", [])]
    if not scores or not result:
        return []

    every = [one.dice for one in scores]
    text = f"{told(mean(every), statistics.mean_interval(every))} on {len(scores)} cases"
    rows = [(f"{name} foreground Dice", text)]
    by_class = result["class_dice"]
    if len(classes) > 2:
        text = ", ".join(f"{one} {value:.3f}" for one, value in by_class.items())
        rows.append((f"{name} Dice by class", text))
    for key, words in (("hd95_mm", "HD95 in mm"), ("surface_dice", "surface Dice")):
        if key in result:
            values = [f"{n} {'-' if v is None else f'{v:.3f}'}" for n, v in result[key].items()]
            rows.append((f"{name} {words}", ", ".join(values)))
    return rows


def _scores(result: dict[str, Any] | None) -> list[ImageScore]:
    return [ImageScore.from_dict(image) for image in (result or {}).get("images", [])]


def _class_rows(name: str, scores: list[ImageScore], classes: list[str]) -> list[tuple[str, str]]:
    """Dice of each class by name, where there are several."""
    rows = []
    for one in classes[1:] if len(classes) > 2 else ():
        at = classes.index(one) - 1
        counts = [s.foreground[at] for s in scores]
        values = [dice(c.tp, c.fp, c.fn) for c in counts if c.tp + c.fn]
        text = f"{told(mean(values), statistics.mean_interval(values))} on {len(values)}"
        text += " images that have it"
        rows.append((f"{name} Dice of {one}", text))
    return rows


def _score_rows(
    name: str, scores: list[ImageScore], settings: Settings, split: Split
) -> list[tuple[str, str]]:
    noun, patients = settings.noun, patient_of(split.patients.get(name.lower(), {}))
    lesions = [score for score in scores if not score.empty]
    empty = [score for score in scores if score.empty]
    every = statistics.accuracy_interval(scores, patients)

    def interval(part: list[ImageScore], values: list[float]) -> tuple[float, float] | None:
        return statistics.mean_interval(values, [score.name for score in part], patients)

    found = interval(lesions, [score.dice for score in lesions])
    correct = interval(empty, [float(score.false_pixels == 0) for score in empty])
    return [
        (f"{name} accuracy", f"{told(statistics.accuracy(scores), every)} on {len(scores)} {noun}"),
        (
            f"{name} foreground Dice",
            f"{told(statistics.lesion_dice(scores), found)} on {len(lesions)} lesion {noun}",
        ),
        (
            f"{name} without lesion",
            f"{told(statistics.empty_correct(scores), correct)} of {len(empty)} {noun} left empty",
        ),
        *_class_rows(name, scores, split.masks.names),
    ]


def edge_of_range(rate: float, low: float, high: float, space_file: Path | None = None) -> str:
    """Whether a rate lies at an edge of its range, and what to try then."""
    place = (log(rate) - log(low)) / (log(high) - log(low))
    lower, higher = f"--lr-range-min {low / 10:g}", f"--lr-range-max {high * 10:g}"
    if space_file:
        lower, higher = f"lower ones in {space_file}", f"higher ones in {space_file}"
    if place < EDGE:
        return f"yes, the lower: try {lower}"
    if place > 1 - EDGE:
        return f"yes, the upper: try {higher}"
    return "no"


def _edge(settings: Settings, best: TrialRecord) -> str:
    if best.optimizer == "hessian":
        return "no: hessian finds its own step"
    if not settings.space:
        return edge_of_range(best.lr, settings.lr_min, settings.lr_max)
    low, high = settings.space.ends("optimizer.learning_rate")
    if not 0 < low < high:
        return "its rate is not searched"
    return edge_of_range(best.lr, low, high, settings.space_file)


def _warnings(
    settings: Settings, split: Split, best: TrialRecord, scores: list[ImageScore]
) -> list[tuple[str, str]]:
    last = "no"
    if best.epoch_max_acc == settings.num_epochs:
        last = f"yes: more epochs may help, like --num-epochs {2 * settings.num_epochs}"
    twins = set(split.near_twins)
    apart = [score for score in scores if score.name not in twins]
    rows = [
        ("Best rate at an edge of its range", _edge(settings, best)),
        ("Best epoch is the last", last),
    ]
    if scores:
        without = f"; without them accuracy {told(statistics.accuracy(apart))}, foreground Dice "
        without += told(statistics.lesion_dice(apart))
        count = f"{len(scores) - len(apart)} of {len(scores)} test images"
        rows.append(
            ("Near-twin in training", count + (without if len(apart) < len(scores) else ""))
        )
    return rows


def print_end(
    settings: Settings,
    split: Split,
    best: TrialRecord,
    records: list[TrialRecord],
    validation: dict[str, Any] | None,
    test: dict[str, Any] | None,
    launcher: str,
    console: Console,
) -> None:
    """The best trial, its scores, what to doubt about them, and the command to use the model."""
    rows = _trial_rows(settings, best, records)
    if settings.kind == "volumes":
        print_end_of_volumes(settings, split, best, rows, validation, test, launcher, console)
        return
    on_validation, on_test = _scores(validation), _scores(test)
    if settings.select_on == "validation" and on_validation:
        rows += _score_rows("Validation", on_validation, settings, split)
    elif settings.select_on == "test" and not on_test:
        rows.append(("Test accuracy", f"{best.max_acc:.3f}"))
    if on_test:
        rows += _score_rows("Test", on_test, settings, split)
    if settings.select_on == "test":
        rows.append(("Chosen on", f"{_optimistic(settings)} (published protocol): optimistic"))
    rows += _warnings(settings, split, best, on_test if settings.kind == "images" else [])
    print_grid([(name, value) for name, value in rows], console)
    console.print(_intervals(settings, split, rows), markup=False, soft_wrap=True)
    for line in _next_steps(settings, split, launcher):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_end_of_volumes(
    settings: Settings,
    split: Split,
    best: TrialRecord,
    rows: list[tuple[str, str]],
    validation: dict[str, Any] | None,
    test: dict[str, Any] | None,
    launcher: str,
    console: Console,
) -> None:
    """The best trial of a study of volumes, after the `rows` about its trials."""
    if settings.select_on == "validation":
        rows += _rows_of_volumes("Validation", validation, split.masks.names)
    else:
        rows.append(("Chosen on", f"{_optimistic(settings)} (published protocol): optimistic"))
    rows += _rows_of_volumes("Test", test, split.masks.names)
    rows += _warnings(settings, split, best, [])
    print_grid(rows, console)
    console.print(_intervals(settings, split, rows), markup=False, soft_wrap=True)
    for line in _next_steps(settings, split, launcher):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_end_of_command(
    settings: Settings,
    folder: Path,
    best: TrialRecord,
    records: list[TrialRecord],
    console: Console,
) -> None:
    """The best trial of a study of the user's own command, by what the command told."""
    model = checkpoint_of(folder / run_name(best.trial), best.epoch_max_acc)
    kept = "none: the command left no checkpoints/best.*"
    if model:
        name = Path(MODEL_FILE).with_suffix(model.suffix)
        kept = f"best_model/{name}; how to use it, only your command knows"
    rows = [
        *_trial_rows(settings, best, records),
        (f"Its {settings.metric}", f"{best.value:.3f}, as the command told it"),
    ]
    if settings.select_on == "test":
        rows.append(("Chosen on", f"{_optimistic(settings)} (published protocol): optimistic"))
    else:
        rows.append(("Test images", "not evaluated: only your command knows how"))
    rows.append(("Model", kept))
    print_grid(rows, console)
    line = "Every trial: list_acc.json."
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _trial_rows(
    settings: Settings, best: TrialRecord, records: list[TrialRecord]
) -> list[tuple[str, str]]:
    counts = {
        state: sum(r.state == state for r in records) for state in ("COMPLETE", "PRUNED", "FAIL")
    }
    return [
        ("Trials", ", ".join(f"{n} {state.lower()}" for state, n in counts.items())),
        (
            "Best trial",
            f"{best.trial}: {best.optimizer}, {best.loss}, rate {best.lr:.3e}, "
            f"epoch {best.epoch_max_acc} of {settings.num_epochs}",
        ),
        ("Weights", best.weights),
    ]


def _places_outside(data: Path) -> list[Path]:
    """Where the data really lies, with what its links lead to, apart from what lies below here."""
    here = Path.cwd().resolve()
    places = mounts([data.resolve()], here)
    return [place for place in places if not place.is_relative_to(here)]


def _intervals(settings: Settings, split: Split, rows: list[tuple[str, str]]) -> str:
    """What the numbers in brackets are, or why there are none."""
    units = "patients" if settings.kind == "slices" and split.patients else settings.noun
    if not any(" to " in value.partition(" (")[2] for name, value in rows if "Best" not in name):
        return f"Intervals need {statistics.FEWEST} {units} or more."
    narrow = settings.kind == "slices" and not split.patients
    over = f"{units}: too narrow for new patients." if narrow else f"{units}."
    return f"Numbers in brackets are 95 % bootstrap intervals over {over}"


def _next_steps(settings: Settings, split: Split, launcher: str) -> list[str]:
    config = paste.test_config()
    use = f"{paste.trainer('trainer')} {config}"
    if launcher == "docker":
        use = "docker run --rm -u $(id -u):$(id -g) -v ${PWD}:/home/ubuntu -w /home/ubuntu "
        use += f"{settings.docker_image} rmldnn {config}"
        outside = _places_outside(settings.data)
        binds = "".join(f" -v {shlex.quote(f'{place}:{place}:ro')}" for place in outside)
        use = use.replace(" -w ", f"{binds} -w ")
        if len(outside) > MOST_BINDS:  # links to many places: a process follows them all
            use = f"{paste.trainer('trainer')} {config}"
    return [
        "Every trial: list_acc.json. The best model: best_model/. To predict and look:",
        f"  {use}",
        f"  {paste.trainer('trainer.review')} predictions/output_1.h5",
    ]
