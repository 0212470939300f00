"""Runs a trial in a container of its own: as its caller, without network, rights or other files.

An image of ours has the label SOURCE_LABEL and runs our trainer. Any other image is foreign: it
gets `rmldnn --config=config.json`, and what it tells is read from its out_test.txt.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from launchers import Job, engine, owner
from launchers.container import (
    LABEL,
    Caller,
    Image,
    container_arguments,
    gpu_request,
    hardening,
    owner_labels,
)
from launchers.foreign import OUT_TEST_FILE, OutTestReader
from launchers.image import SOURCE_LABEL, source_hash
from launchers.mounts import mounts
from launchers.run_folder import (
    Heartbeat,
    gpu_name,
    open_to_append,
    stop_or_kill,
    wait_until_ended,
)
from trainer.errors import InputError
from trainer.events import LOG_FILE, METRICS_FILE, STDERR_FILE, EventReader

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

LOST = 137
"""Exit code of a container that is gone without having told one: it was killed."""
PROBE_LABEL = f"{LABEL}.probe"
PROBE_SECONDS = 60.0
ENGINE_RETURNS_SECONDS = 60.0
"""So long an engine that went away while a trial ran may take to come back."""


class DockerLauncher:
    """Starts trials in containers of one image; `open` makes one."""

    name = "docker"

    def __init__(self, client: DockerClient, image: Image, caller: Caller | None = None) -> None:
        self._client, self.image = client, image
        self._caller = caller or Caller.current()
        self._engine = _info(client)
        self._mounts: dict[tuple[Path, ...], list[Path]] = {}

    @classmethod
    def open(cls, image: str, caller: Caller | None = None) -> DockerLauncher:
        """A launcher whose engine answers and has `image`; raises InputError."""
        client = engine.connect()
        return cls(client, _find(client, image), caller)

    @property
    def foreign(self) -> bool:
        """Whether the image knows only rmldnn's contract."""
        return self.image.source is None

    @property
    def stale(self) -> bool:
        """Whether the image was built by us from other code than this program's."""
        return self.image.source is not None and self.image.source != source_hash()

    def launch(self, job: Job) -> RunningContainer:
        """Starts the trial; raises InputError if the engine cannot. Nothing is left then."""
        reads_out_test = self.foreign and job.runs_trainer
        if reads_out_test:
            # Epochs of an earlier start of the same trial must not be read as this one's.
            (job.run_folder / OUT_TEST_FILE).unlink(missing_ok=True)
        arguments = container_arguments(
            job,
            self.image,
            self._caller,
            self._engine,
            self._input_places(job),
            gpu_name(job.device, os.environ),
        )
        container = self._create(arguments)
        heartbeat: Heartbeat | None = None
        try:
            heartbeat = Heartbeat(job.run_folder)
            running = RunningContainer(
                container,
                job.run_folder,
                heartbeat,
                reads_out_test=reads_out_test,
                writes_log=not self.foreign and job.runs_trainer,
            )
            container.start()
        except BaseException as error:
            _remove(self._client, str(container.id))
            if heartbeat:
                heartbeat.end()
            raise _told(error) from None
        return running

    def reap(self, study_folder: Path) -> int:
        """Removes containers of the study that a dead driver of this host left; how many.

        Probes that were left go too, uncounted.
        """
        self._remove_left(PROBE_LABEL)
        return self._remove_left(f"{LABEL}.study_folder={study_folder.resolve()}")

    def _remove_left(self, label: str) -> int:
        ended = 0
        for found in self._client.api.containers(all=True, filters={"label": [label]}):
            whose = {
                key: found["Labels"].get(f"{LABEL}.{key}", "")
                for key in ("host", "pid", "start_time")
            }
            if not owner.on_this_host(whose) or owner.alive({**whose, "pid": whose["pid"] or 0}):
                continue
            ended += _remove(self._client, found["Id"])
        return ended

    def probe_gpu(self, device: str = "cuda:0") -> str | None:
        """None if a container of the image can use the GPU; else why not, and what to do.

        A foreign image may have no torch: there only the toolkit's own tool is asked.
        """
        if sys.platform == "darwin":
            return "a container cannot use a Mac's GPU"
        import_torch = "import torch, sys; sys.exit(0 if torch.cuda.is_available() else 1)"
        command = ["nvidia-smi", "-L"] if self.foreign else ["python", "-c", import_torch]
        arguments = {
            **hardening(self._caller, self._engine),
            "image": self.image.id,
            "command": command,
            "device_requests": gpu_request(gpu_name(device, os.environ) or "0"),
            "labels": {PROBE_LABEL: "", **owner_labels()},
        }
        container = self._create(arguments, auto_remove=False)
        deadline = time.monotonic() + PROBE_SECONDS
        try:
            container.start()
            code = container.wait(timeout=PROBE_SECONDS)["StatusCode"]
            said = container.logs(tail=5).decode(errors="replace").strip()
        except Exception as error:
            if time.monotonic() >= deadline:
                waited = f"{PROBE_SECONDS:g} s"
                return f"a container of '{self.image.name}' did not find {device} within {waited}"
            told = _told(error)
            if not isinstance(told, InputError):
                raise
            return str(told)
        finally:
            _remove(self._client, str(container.id))
        if code == 0:
            return None
        said = said or "torch.cuda.is_available() is False"
        return f"a container of '{self.image.name}' cannot use {device}: {said}"

    def _create(self, arguments: dict[str, Any], auto_remove: bool = True) -> Container:
        try:
            return self._client.containers.create(**arguments, auto_remove=auto_remove)
        except Exception as error:
            raise _told(error) from None

    def _input_places(self, job: Job) -> list[Path]:
        """The mounts for the job's inputs; walking 100,000 images once a study is enough."""
        outside = tuple(path for path in job.inputs if job.run_folder not in path.parents)
        if outside not in self._mounts:
            self._mounts[outside] = mounts(outside, job.run_folder)
        return self._mounts[outside]


class RunningContainer:
    """A trial that runs in a container; see `launchers.Running`.

    Made before the container starts: what it says first and how it ends are not to be missed. The
    engine removes it when it ends, so nothing is left even if this process is killed.
    """

    def __init__(
        self,
        container: Container,
        run_folder: Path,
        heartbeat: Heartbeat,
        *,
        reads_out_test: bool,
        writes_log: bool,
    ) -> None:
        self.container = container
        self._heartbeat = heartbeat
        self._exit_code: int | None = None
        self._events: EventReader | OutTestReader = EventReader(run_folder / METRICS_FILE)
        if reads_out_test:
            self._events = OutTestReader(run_folder / OUT_TEST_FILE)
        if writes_log:  # our trainer, by itself
            said, file = container.attach(stdout=False, stderr=True, stream=True), STDERR_FILE
        else:
            said, file = container.attach(stdout=True, stderr=True, stream=True), LOG_FILE
        out = open_to_append(run_folder / file)
        self._collector = threading.Thread(target=_collect, args=(said, out), daemon=True)
        self._collector.start()
        threading.Thread(target=self._await_end, daemon=True).start()

    def poll(self) -> list[dict[str, Any]]:
        """Events since the last poll."""
        return self._events.new()

    @property
    def exit_code(self) -> int | None:
        """None until the container is gone; its exit code, 128 + N where signal N ended it."""
        return self._exit_code

    def request_stop(self) -> None:
        """Sends SIGTERM; the container's init passes it on."""
        self._signal("SIGTERM")

    def stop(self, grace_seconds: float = 30) -> None:
        """Asks it to stop, waits so long, then kills it. Returns when the container is gone."""
        stop_or_kill(self, grace_seconds)

    def kill(self) -> None:
        """Asks the engine to kill it at once; does not wait."""
        self._signal("SIGKILL")

    def wait(self, timeout_seconds: float | None = None) -> int:
        """Waits until it ends; its exit code. Raises TimeoutError."""
        return wait_until_ended(self, timeout_seconds)

    def _signal(self, name: str) -> None:
        from docker.errors import APIError
        from requests.exceptions import RequestException

        # Not found (404) or not running (409): it has ended by itself meanwhile.
        with suppress(APIError, RequestException):
            self.container.kill(signal=name)

    def _await_end(self) -> None:
        code = _end_of(self.container)
        self._collector.join(timeout=5)
        self._heartbeat.end()
        self._exit_code = code


def _find(client: DockerClient, name: str) -> Image:
    from docker.errors import APIError, ImageNotFound

    try:
        found = client.images.get(name)
    except ImageNotFound:
        raise engine.image_error(name) from None
    except APIError as error:
        raise InputError("image", f"'{name}': {error.explanation or error}") from None
    return Image(name, str(found.id), found.labels.get(SOURCE_LABEL))


def _info(client: DockerClient) -> dict[str, Any]:
    from docker.errors import APIError
    from requests.exceptions import RequestException

    try:
        return dict(client.info())
    except (APIError, RequestException) as error:
        raise engine.connection_error("", error) from None


def _end_of(container: Container) -> int:
    """Waits until the container is gone; its exit code, LOST if nobody knows it any more."""
    from docker.errors import APIError
    from requests.exceptions import RequestException

    lost_at = None
    while lost_at is None or time.monotonic() - lost_at < ENGINE_RETURNS_SECONDS:
        try:
            # Not "next-exit": that one never answers about a container that is gone already.
            return int(container.wait(condition="removed")["StatusCode"])
        except APIError:
            return LOST
        except RequestException:  # The engine restarts.
            lost_at = lost_at or time.monotonic()
            time.sleep(1)
    return LOST


def _collect(said: Iterable[bytes], out: BinaryIO) -> None:
    """Writes what a container says to `out`; reads on when the disk is full, else it would block.

    The connection may break off at the end: with the container, or with the engine.
    """
    with out, suppress(OSError, ValueError):
        for part in said:
            with suppress(OSError):
                out.write(part)


def _told(error: BaseException) -> BaseException:
    """An error of the engine as an InputError; any other as it is."""
    from docker.errors import APIError, ImageNotFound
    from requests.exceptions import RequestException

    if isinstance(error, ImageNotFound):
        return InputError("image", "it was removed while the study ran", fix="get it again")
    if isinstance(error, APIError):
        return engine.start_error(str(error.explanation or error))
    if isinstance(error, RequestException):
        return engine.connection_error("", error)
    return error


def _remove(client: DockerClient, container: str) -> bool:
    """Kills and removes a container by its id; False if it went by itself meanwhile."""
    from docker.errors import APIError

    try:
        client.api.remove_container(container, force=True)
    except APIError:  # 404: gone. 409: the engine is removing it.
        return False
    return True
