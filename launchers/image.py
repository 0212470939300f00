"""Which code an image was built from: `python -m launchers.image` prints the hash for its label.

docker build --build-arg SOURCE=$(python -m launchers.image) -t rml-trainer .
"""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path

PROGRAM_FOLDER = Path(__file__).resolve().parent.parent
"""Where trainer/ and launchers/ are."""

CHECKOUT = (PROGRAM_FOLDER / "Makefile").exists()
"""Whether the program runs from its repository, and not as pip installed it."""

OUR_IMAGE = "rml-trainer"
"""The name that `make image` gives."""

SOURCE_LABEL = "org.rml-optimization.source"
"""Label of an image of ours: the hash of what it was built from. Other images do not have it."""


def source_hash(program: Path = PROGRAM_FOLDER) -> str:
    """SHA-256 over the names and contents of all that goes into the image, in hexadecimal."""
    names = ("Dockerfile", "requirements.lock", "trainer/requirements.txt")
    files = [program / name for name in names if (program / name).exists()]
    files += (program / "trainer").rglob("*.py")
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda path: path.relative_to(program).as_posix()):
        content = file.read_bytes()
        # With the length, no file can be mistaken for the end of one and the start of the next.
        digest.update(f"{file.relative_to(program).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def build_command() -> str:
    """What to type to build our image: the program may be installed, without its Makefile."""
    if CHECKOUT:
        return "make image"
    source = f"--build-arg SOURCE={source_hash()}"
    return f"docker build --tag {OUR_IMAGE} {source} {shlex.quote(str(PROGRAM_FOLDER))}"


if __name__ == "__main__":
    print(source_hash())
