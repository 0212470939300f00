#!/usr/bin/env python3
"""Hyperparameter search for medical image segmentation, one container a trial.

    python rml_optimization.py --num-trials 50

Without a subcommand a study runs. Exit codes: 0 all trials ended, 1 no trial finished, 2 a mistake
of input, 130 Ctrl-C.
"""

from __future__ import annotations

import sys
from pathlib import Path

# Where pip installed it, the program lies in a folder of its own; no package of others is meant.
if sys.path[:1] != [(FOLDER := str(Path(__file__).resolve().parent))]:
    sys.path.insert(0, FOLDER)

NEEDED = ("typer", "optuna", "rich", "tabulate", "pydantic", "numpy", "PIL", "docker")


def _check_packages() -> None:
    from importlib.util import find_spec

    missing = [name for name in NEEDED if find_spec(name) is None]
    if not missing:
        return
    python = Path(__file__).resolve().parent / ".venv/bin/python"
    fix = f"run it with {python}" if python.exists() else "make install, then .venv/bin/python"
    if not (python.parents[2] / "Makefile").exists():
        fix = f"{sys.executable} -m pip install {' '.join(missing)}"
    print(f"{sys.executable} has no {', '.join(missing)}: {fix}", file=sys.stderr)
    sys.exit(2)


_check_packages()

from typing import Annotated, Any  # noqa: E402

import typer  # noqa: E402

from trainer.errors import InputError, RmlError  # noqa: E402

app = typer.Typer(
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


IMAGE = "rml-trainer"


STORAGE = "sqlite:///rml_study.db"


def _option(*names: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, **more)


PLAN = "plan"


@app.callback(invoke_without_command=True)
@app.command(PLAN, help="Measures one step of a study and tells its time, end, memory and disk.")
def study(
    context: typer.Context,
    num_trials: Annotated[int, _option("--num-trials", "-nt", help="Trials of the study.")] = 50,
    num_epochs: Annotated[int, _option("--num-epochs", "-ne", help="Epochs of a trial.")] = 50,
    data: Annotated[
        Path,
        _option("--data", help="Folder of images and masks, or of prepared volumes or slices."),
    ] = Path("./data"),
    labels: Annotated[
        Path | None,
        _option(
            "--labels", help='Classes of the masks: {"background": 0, "tumour": 255} in a file.'
        ),
    ] = None,
    optimizers: Annotated[
        str,
        _option(
            "--optimizers",
            "-o",
            help="Comma list: sgd, rmsprop, adagrad, adam, adamw, lars, lamb, hessian.",
        ),
    ] = "adam,rmsprop,sgd",
    loss: Annotated[
        str | None,
        _option(
            "--loss",
            "-l",
            help="Comma list: bce, dice, jaccard, focal, lovasz, mse, dice_ce, log_dice, tversky, "
            "adaptive_dice32, generalized_dice; nll with several classes. "
            "[default: bce,dice; with several classes nll,dice]",
            show_default=False,
        ),
    ] = None,
    lr_range_min: Annotated[
        float, _option("--lr-range-min", "-lr-min", help="Lowest learning rate.")
    ] = 1e-4,
    lr_range_max: Annotated[
        float, _option("--lr-range-max", "-lr-max", help="Highest learning rate.")
    ] = 1e-2,
    lr_scheduler: Annotated[
        bool,
        _option("--lr-scheduler/--no-lr-scheduler", help="Exponential learning rate schedule."),
    ] = False,
    lr_scheduler_kind: Annotated[
        str | None,
        _option(
            "--lr-scheduler-kind",
            help="Comma list: exponential, step, multistep, warmup, polynomial, cosine, none, or "
            "several multiplied, like warmup+step; of several the search chooses.",
        ),
    ] = None,
    lr_scheduler_gamma: Annotated[
        float | None,
        _option(
            "--lr-scheduler-gamma",
            "-lr-gamma",
            help="Factor of a schedule. [default: exponential 0.95, step and multistep 0.1]",
            show_default=False,
        ),
    ] = None,
    layers: Annotated[
        str | None,
        _option(
            "--layers",
            help="Network file; looked up here, then beside the program. "
            "[default: ./layers/resunet.json with an NVIDIA GPU, else ./layers/unet_small.json]",
            show_default=False,
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        _option(
            "--image-size",
            help="Side of the square images that the network sees, in pixels. "
            "[default: 256 with an NVIDIA GPU, else 128]",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[int, _option("--batch-size", help="Images in a training batch.")] = 32,
    augment: Annotated[
        str,
        _option("--augment", help="light (flip, rotation, zoom, brightness, contrast) or none."),
    ] = "light",
    weights: Annotated[
        str, _option("--weights", help="Start from: auto, imagenet, none, or a FILE.")
    ] = "auto",
    transfer_learning: Annotated[
        str, _option("--transfer-learning", "-tl", help="Checkpoint file to start from.")
    ] = "",
    select_on: Annotated[
        str, _option("--select-on", help="Choose on: validation, or test (published protocol).")
    ] = "validation",
    metric: Annotated[
        str, _option("--metric", help="Choose by: accuracy, foreground_dice or iou.")
    ] = "accuracy",
    split: Annotated[
        Path | None, _option("--split", help="Split file of an earlier study to use again.")
    ] = None,
    group_by: Annotated[
        str | None,
        _option(
            "--group-by", help="Regular expression on file names; equal matches stay together."
        ),
    ] = None,
    prune: Annotated[
        bool, _option("--prune/--no-prune", help="Stop trials below the median early.")
    ] = True,
    seed: Annotated[int, _option("--seed", help="Of sampler, split, weights and shuffles.")] = 0,
    timeout: Annotated[
        str | None, _option("--timeout", help="Time limit of the study, like 90s, 30m, 4h, 2d.")
    ] = None,
    keep_checkpoints: Annotated[
        int, _option("--keep-checkpoints", help="Trials whose weights stay, the best ones.")
    ] = 3,
    study_name: Annotated[
        str | None,
        _option(
            "--study-name",
            help="Name of the study and of its folder in ./runs. [default: study-DATE-TIME]",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool,
        _option("--resume", help="Go on with --study-name (or with the study that ran last)."),
    ] = False,
    storage: Annotated[str, _option("--storage", help="Optuna storage URL.")] = STORAGE,
    launcher: Annotated[str, _option("--launcher", help="auto, docker or process.")] = "auto",
    docker_image: Annotated[
        str, _option("--docker-image", "-docker", help="Image of the trials.")
    ] = IMAGE,
    config: Annotated[
        Path | None,
        _option(
            "--config",
            help="Configuration with what is not searched; that of prepared volumes lies beside "
            "them.",
        ),
    ] = None,
    space: Annotated[
        Path | None,
        _option(
            "--space", help="Search space in a file: any keys of the configuration and network."
        ),
    ] = None,
    trial_command: Annotated[
        str | None,
        _option(
            "--trial-command",
            help='Your own training script, like "python my_train.py {config}"; a process, or in '
            "a container with --docker-image.",
        ),
    ] = None,
    singularity_image: Annotated[
        str, _option("--singularity-image", "-singularity", help="Not built yet.")
    ] = "None",
    gpu: Annotated[
        bool | None,
        _option(
            "--gpu/--no-gpu",
            help="Use a GPU. [default: where one is found]",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[
        int | None,
        _option(
            "--threads", help="CPU threads of a trial. [default: all cores]", show_default=False
        ),
    ] = None,
    num_procs: Annotated[
        int, _option("--num_procs", help="Processes a trial; more than 1 is not built yet.")
    ] = 1,
) -> None:
    """Finds the best segmentation network for the images and masks in --data.

    Results: ./best_model (ready to use), ./list_acc.json (every trial), ./runs/STUDY (everything).
    """
    given = {
        name.replace("_", "-")
        for name in context.params
        if (source := context.get_parameter_source(name)) and source.name == "COMMANDLINE"
    }
    if command := context.invoked_subcommand:
        if given:
            where = ", ".join(f"--{name}" for name in sorted(given))
            found = f"stands before the command '{command}'"
            raise InputError(where, found, f"options behind it: {command} …")
        return
    from study.command import Given, plan_command, run_command

    run = plan_command if context.info_name == PLAN and context.parent else run_command
    raise typer.Exit(run(Given(options=dict(context.params), given=given), Path.cwd()))


Storage = Annotated[str, _option("--storage", help="Optuna storage URL of the studies.")]


@app.command("list")
def list_(
    study: Annotated[str, typer.Argument(help="A study, to list its trials.")] = "",
    storage: Storage = STORAGE,
) -> None:
    """Lists the studies of this folder, or the trials of one."""
    from study.commands import history

    if study:
        history.print_trials(history.find(study, Path.cwd(), storage))
    else:
        history.print_studies(history.studies(Path.cwd(), storage))


@app.command()
def show(
    trial: Annotated[int, typer.Argument(help="Number of the trial.")],
    study_name: Annotated[
        str, _option("--study-name", "--study", help="Its study. [default: the one that ran last]")
    ] = "",
    storage: Storage = STORAGE,
) -> None:
    """Shows a trial: state, cause, settings, learning curve, log, files, how to repeat it."""
    from study.command import last_study
    from study.commands.history import find
    from study.commands.show import show_trial

    name = study_name or last_study(Path.cwd(), "show")
    show_trial(find(name, Path.cwd(), storage), trial)


@app.command()
def use(
    study: Annotated[str, typer.Argument(help="A study that has a model.")],
    storage: Storage = STORAGE,
) -> None:
    """Brings an earlier study's model back to ./best_model, and its ./list_acc.json."""
    from study.commands.history import find
    from study.commands.use import use_study

    use_study(find(study, Path.cwd(), storage), Path.cwd(), storage)


@app.command()
def compare(
    study: Annotated[str, typer.Argument(help="A study, A.")],
    other: Annotated[str, typer.Argument(help="A study of the same data, B.")],
    storage: Storage = STORAGE,
) -> None:
    """Compares two studies: settings, best so far, paired difference on the test images."""
    from study.commands import compare as comparison
    from study.commands.history import find

    found = [find(name, Path.cwd(), storage) for name in (study, other)]
    comparison.compare(found[0], found[1], Path.cwd())


@app.command()
def check(
    data: Annotated[Path, _option("--data", help="Folder of images and masks.")] = Path("./data"),
    labels: Annotated[
        Path | None, _option("--labels", help="Labels file, where masks have several classes.")
    ] = None,
    group_by: Annotated[
        str | None,
        _option("--group-by", help="Regular expression on names; equal matches are a group."),
    ] = None,
    out: Annotated[Path, _option("--out", help="Picture to write.")] = Path("check.png"),
    everything: Annotated[bool, _option("--all", help="Name every file, not ten a kind.")] = False,
) -> None:
    """Tells everything that is amiss with --data, and draws twelve images. Starts nothing."""
    import os

    from rich.console import Console

    from study.commands.check import run_check
    from trainer.data.labels import read_labels

    classes = read_labels(labels) if labels else []
    folder = Path(os.path.abspath(data))
    raise typer.Exit(run_check(folder, classes, group_by, out, everything, Console()))


@app.command()
def predict(
    folder: Annotated[
        Path, typer.Argument(help="Images or scans (a folder, with subfolders, or one).")
    ],
    model: Annotated[
        Path, _option("--model", help="Folder of a study's best model, or a checkpoint.")
    ] = Path("best_model"),
    out: Annotated[Path, _option("--out", help="Folder for the results.")] = Path("predictions"),
    launcher: Annotated[str, _option("--launcher", help="auto, docker or process.")] = "auto",
    docker_image: Annotated[
        str | None,
        _option("--docker-image", help=f"Image. [default: {IMAGE}]", show_default=False),
    ] = None,
    gpu: Annotated[
        bool | None,
        _option("--gpu/--no-gpu", help="Use a GPU. [default: where one is found]"),
    ] = None,
    threads: Annotated[int | None, _option("--threads", help="CPU threads.")] = None,
    trust_code: Annotated[
        bool, _option("--trust-code", help="Run a model's own Python file as a process here.")
    ] = False,
    mirror: Annotated[
        bool, _option("--mirror", help="Scans: the mean over all mirror images; slower.")
    ] = False,
) -> None:
    """Writes a mask and an overlay for every image of FOLDER, with a model of a study."""
    from rich.console import Console

    from study.command import find_gpu
    from study.commands.predict import Predict, run_predict
    from study.settings import check_choice, check_positive

    asked = Predict(
        source=folder.resolve(),
        model=model.resolve(),
        out=out.absolute(),
        launcher=check_choice("launcher", launcher),
        docker_image=docker_image or IMAGE,
        docker_image_given=docker_image is not None,
        gpu=find_gpu(gpu),
        threads=None if threads is None else check_positive("threads", threads),
        trust_code=trust_code,
        mirror=mirror,
    )
    raise typer.Exit(run_predict(asked, Console()))


def main() -> None:
    """Runs the command line; every known error is one message and its exit code."""
    try:
        app()
    except RmlError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
