"""Which launcher a study uses, and why: asked for by name, or found by `auto`."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from launchers import Launcher
from launchers.docker import DockerLauncher
from launchers.image import build_command
from launchers.process import ProcessLauncher
from trainer.errors import InputError


@dataclass(frozen=True)
class Place:
    """A launcher, why it was chosen, and whether its image is foreign (knows only folders)."""

    launcher: Launcher
    why: str
    foreign: bool = False
    image_id: str | None = None


def choose_launcher(
    asked: str, image: str, image_given: bool, gpu: bool, own_command: bool = False
) -> Place:
    """The place of a study's trials; raises InputError where what was asked for is not there.

    `auto` takes Docker where an engine answers, the image is there and up to date and, with a GPU,
    a container sees it; else a process. An image named by hand is never replaced by a process.

    With a command of the user (`own_command`) `auto` takes a process, where the command finds what
    it finds where it was typed, and any image takes it as ours do.
    """
    if asked == "process" and image_given:
        found = f"--docker-image {image} and --launcher process exclude each other"
        raise InputError("--launcher", found, "one of them")
    if asked == "process":
        return Place(_process(own_command), "asked for by --launcher process")
    if asked == "docker" or image_given:
        docker = DockerLauncher.open(image)
        reason = docker.probe_gpu() if gpu else None
        if reason:
            raise InputError("--launcher docker", reason, fix="mend that, or run with --no-gpu")
        why = "asked for by " + ("--docker-image" if image_given else "--launcher docker")
        named = image if own_command and docker.foreign else _named(docker, image)
        why = f"{why}, image {named}"
        return Place(docker, why, docker.foreign and not own_command, docker.image.id)
    if own_command:
        why = "the command runs as you typed it; in a container: --docker-image NAME"
        return Place(_process(own_command), why)
    try:
        docker = DockerLauncher.open(image)
    except InputError as error:
        fix = f"; for containers: {error.fix}" if error.fix else ""
        return Place(_process(), f"no containers: {error.found}{fix}")
    if docker.stale or docker.foreign:
        why = f"no containers: the image {image} is older than the code; for containers: "
        why += build_command()
        return Place(_process(), why)
    if gpu and (reason := docker.probe_gpu()):
        return Place(_process(), f"no containers: {reason}")
    return Place(docker, f"an engine answers and has the image {image}", False, docker.image.id)


def _named(docker: DockerLauncher, image: str) -> str:
    if docker.foreign:
        return f"{image} (foreign: knows only folders)"
    return f"{image} (older than the code: {build_command()})" if docker.stale else image


def _process(own_command: bool = False) -> ProcessLauncher:
    if not own_command and importlib.util.find_spec("torch") is None:
        raise InputError(
            "--launcher process",
            "this Python has no torch",
            "the trainer's packages",
            f"pip install -r requirements.txt, or {build_command()} and --launcher docker",
        )
    return ProcessLauncher()
