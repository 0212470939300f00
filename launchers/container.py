"""What a trial's container is created with. Pure: nothing here talks to the engine."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from launchers import Job, owner
from launchers.run_folder import (
    device_inside,
    supervised,
    thread_limits,
    trainer_options,
)
from trainer.events import HEARTBEAT_FILE

LABEL = "org.rml-optimization"
"""Begins the labels of our containers: study_folder, study, trial, probe, host, pid, start_time."""

PROGRAM_INSIDE = Path("/opt/rml")
"""Where trainer/ lies in an image of ours."""

MEMORY_SHARE = 0.9
PIDS_LIMIT = 4096


class Caller(NamedTuple):
    """Who a trial runs as."""

    uid: int
    gid: int
    groups: tuple[int, ...]

    @classmethod
    def current(cls) -> Caller:
        """Who runs this process."""
        return cls(os.getuid(), os.getgid(), tuple(os.getgroups()))


class Image(NamedTuple):
    """An image of this machine; `source` is its SOURCE_LABEL, None where it has none."""

    name: str
    id: str
    source: str | None


def hardening(caller: Caller, engine_info: Mapping[str, Any]) -> dict[str, Any]:
    """How any container of ours is created: as the caller, and able to do little else."""
    options = " ".join(engine_info.get("SecurityOptions") or ())
    security = ["no-new-privileges"]
    if "name=selinux" in options:
        # Else the user's files would need another label, which would be a change to them.
        security.append("label=disable")
    if "name=rootless" in options:
        # There the container's root is the caller, and the caller's groups do not exist.
        user, groups = "0:0", []
    else:
        user = f"{caller.uid}:{caller.gid}"
        groups = [str(group) for group in caller.groups if group != caller.gid]
    return {
        "user": user,
        "group_add": groups,
        # An engine that renames users (userns-remap) would write files that are not the caller's.
        **({"userns_mode": "host"} if "name=userns" in options else {}),
        "network_mode": "none",
        "read_only": True,
        # exec: torch.compile loads what it compiled from here.
        "tmpfs": {"/tmp": "rw,exec,nosuid,nodev,size=1g,mode=1777"},
        "cap_drop": ["ALL"],
        "security_opt": security,
        "init": True,
        "pids_limit": PIDS_LIMIT,
    }


def container_arguments(
    job: Job,
    image: Image,
    caller: Caller,
    engine_info: Mapping[str, Any],
    input_places: Iterable[Path] = (),
    gpu: str | None = None,
) -> dict[str, Any]:
    """Arguments of `containers.create` for a trial; starts nothing.

    `engine_info` is what `docker info` tells, `input_places` come from `mounts`, `gpu` is a number
    or UUID.
    """
    from docker.types import LogConfig, Mount

    folder = str(job.run_folder)
    readable = [
        Mount(str(place), str(place), type="bind", read_only=True) for place in input_places
    ]
    memory = job.memory_bytes or int(MEMORY_SHARE * engine_info.get("MemTotal", 0))
    # An engine may be in a machine of its own (Docker Desktop) that has fewer cores.
    cores_known = job.cores and max(job.cores) < engine_info.get("NCPU", 0)
    return {
        **hardening(caller, engine_info),
        "image": image.id,
        "command": command_inside(job, image),
        "working_dir": folder,
        "mounts": [*readable, Mount(folder, folder, type="bind")],
        "shm_size": "1g",
        # Memory and swap together: without swap, too much is an error and not a crawl.
        **({"mem_limit": memory, "memswap_limit": memory} if memory else {}),
        **({"cpuset_cpus": ",".join(map(str, job.cores))} if cores_known else {}),
        **({"device_requests": gpu_request(gpu)} if gpu is not None else {}),
        "environment": {
            "HOME": "/tmp",
            "MPLCONFIGDIR": "/tmp/matplotlib",
            "XDG_CACHE_HOME": "/tmp/cache",
            "HF_HUB_OFFLINE": "1",
            "PYTHONUNBUFFERED": "1",  # the last line that it says is the cause that is told
            **thread_limits(job.threads),
            # A script may import what lies beside it, as it does where it was written.
            **({"PYTHONSAFEPATH": ""} if job.command else {}),
        },
        "labels": {
            f"{LABEL}.study_folder": str(job.run_folder.parent.resolve()),
            f"{LABEL}.study": job.study,
            f"{LABEL}.trial": str(job.trial),
            **owner_labels(),
        },
        # What it says is collected into the run folder; the engine need not keep it too.
        "log_config": LogConfig(type="none"),
    }


def command_inside(job: Job, image: Image) -> list[str]:
    """What the container runs. A foreign image may have no Python that could supervise a command:
    where the driver is killed, the command runs on until the next driver of the study comes."""
    if job.runs_trainer:
        if image.source is None:
            return ["rmldnn", "--config=config.json"]
        options = trainer_options(device_inside(job.device), job.threads)
        return ["python", "-m", "trainer", *options]
    command = job.command or ("python", "-m", *(job.module or ()))
    if image.source is None:
        return list(command)
    return supervised(command, "python", PROGRAM_INSIDE, HEARTBEAT_FILE)


def owner_labels() -> dict[str, str]:
    """Labels that name this process as the owner of a container."""
    return {f"{LABEL}.{key}": str(value) for key, value in owner.me().items()}


def gpu_request(gpu: str) -> list[Any]:
    from docker.types import DeviceRequest

    return [DeviceRequest(device_ids=[gpu], capabilities=[["gpu"]])]
