"""The Docker engine: where it listens, and in words what is wrong when it does not answer.

The Docker SDK is imported in the functions that need it: a study without containers needs none.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launchers.image import OUR_IMAGE, build_command
from trainer.errors import InputError

if TYPE_CHECKING:
    from docker import DockerClient

CONNECT_SECONDS = 5.0
OR_PROCESS = "or run the trials without containers: --launcher process"
USUAL_SOCKETS = (
    "/var/run/docker.sock",
    "{XDG_RUNTIME_DIR}/docker.sock",  # rootless
    "{HOME}/.docker/run/docker.sock",  # Docker Desktop on macOS
    "{HOME}/.docker/desktop/docker.sock",  # Docker Desktop on Linux
)


def connect() -> DockerClient:
    """A client of the engine that the `docker` command would use; it has answered.

    Raises InputError that tells apart: nothing installed, engine stopped, no right to use it.
    """
    try:
        import docker
        from docker.errors import DockerException
        from requests.exceptions import RequestException
    except ImportError:
        raise InputError(
            "docker",
            "the Python package 'docker' is not installed",
            fix=f"pip install docker, {OR_PROCESS}",
        ) from None
    url, tls = "", None
    try:
        url, tls = _endpoint()
        if url.startswith("unix://"):
            _knock(Path(url.removeprefix("unix://")))
        if os.environ.get("DOCKER_HOST"):
            client = docker.from_env(version="auto")
        else:
            client = docker.DockerClient(base_url=url, version="auto", tls=tls or False)
        client.ping()
    except (DockerException, RequestException, OSError, ValueError) as error:
        raise connection_error(url, error) from None
    return client


def _endpoint() -> tuple[str, Any]:
    """Address and TLS settings, chosen as the `docker` command chooses: environment, context."""
    from docker.context import ContextAPI

    if host := os.environ.get("DOCKER_HOST"):
        return host, None
    name = os.environ.get("DOCKER_CONTEXT")
    context = ContextAPI.get_context(name)
    if context is None:
        raise ValueError(f"there is no Docker context '{name or 'of the configuration'}'")
    if context.name != "default":
        return str(context.Host), context.TLSConfig
    known = {"XDG_RUNTIME_DIR": f"/run/user/{os.getuid()}", **os.environ}
    sockets = [usual.format_map({"HOME": str(Path.home()), **known}) for usual in USUAL_SOCKETS]
    for path in sockets:
        try:
            if Path(path).exists():
                return f"unix://{path}", None
        except PermissionError:
            continue
    return f"unix://{sockets[0]}", None


def _knock(path: Path) -> None:
    """Connects to a socket and leaves; raises the OSError that says why it cannot."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knocking:
        knocking.settimeout(CONNECT_SECONDS)
        knocking.connect(str(path))


def connection_error(url: str, error: Exception) -> InputError:
    """Why the engine at `url` cannot be used, and the command that mends it."""
    path = url.removeprefix("unix://")
    if isinstance(error, FileNotFoundError) and not shutil.which("docker"):
        return InputError(
            "docker",
            f"there is no Docker on this machine (no command `docker`, no socket {path})",
            fix=f"install it (https://docs.docker.com/engine/install/), {OR_PROCESS}",
        )
    if isinstance(error, FileNotFoundError | ConnectionRefusedError):
        return InputError(
            "docker",
            f"the Docker engine does not run (nothing listens at {path})",
            fix=f"{_start_command(path)}, {OR_PROCESS}",
        )
    if isinstance(error, PermissionError):
        return InputError(
            "docker",
            f"no right to use the Docker engine (socket {path})",
            fix=f"sudo usermod -aG docker $USER, and log in again; {OR_PROCESS}",
        )
    return InputError(
        "docker",
        f"the Docker engine at {url or 'its address'} does not answer: {error}",
        fix=f"see what `docker info` says (DOCKER_HOST, docker context), {OR_PROCESS}",
    )


def _start_command(path: str) -> str:
    if sys.platform == "darwin":
        return "open Docker Desktop (open -a Docker)"
    if "/.docker/" in path:
        return "open Docker Desktop"
    if path not in ("/var/run/docker.sock", "/run/docker.sock"):
        return f"start it (`systemctl --user start docker` if it is yours alone); it is at {path}"
    return "sudo systemctl start docker (or open Docker Desktop)"


def image_error(image: str) -> InputError:
    """The image is not there, and how to get it; nothing is pulled unasked."""
    ours = image.partition(":")[0] == OUR_IMAGE
    fix = build_command() if ours else f"docker pull {image}"
    return InputError("image", f"there is no image '{image}' on this machine", fix=fix)


def start_error(message: str) -> InputError:
    """Why the engine could not start a container, from what it said, and what to do."""
    if "could not select device driver" in message:
        return InputError(
            "docker",
            "the Docker engine cannot give a GPU to a container",
            fix="install the NVIDIA Container Toolkit, then: sudo nvidia-ctk runtime configure"
            " --runtime=docker && sudo systemctl restart docker; or use --launcher process",
        )
    if "nvidia-container-cli" in message or "CDI device" in message:
        return InputError(
            "docker",
            f"the NVIDIA Container Toolkit failed: {message}",
            fix="see that `nvidia-smi` works and lists this GPU, or use --launcher process",
        )
    if "bind source path" in message or "ounts denied" in message or "mount source" in message:
        return InputError(
            "docker",
            f"the engine cannot reach a file of the trial: {message}",
            fix="Docker Desktop: share the folder (Settings, Resources, File sharing). A remote"
            " engine or a network drive closed to root: use --launcher process",
        )
    return InputError(
        "docker",
        f"the trial's container did not start: {message}",
        fix=f"see what `docker info` says, {OR_PROCESS}",
    )
