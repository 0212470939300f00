"""--trial-command: a script of the user in the trainer's place. No shell reads it."""

from __future__ import annotations

import os
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import InputError

CONFIG = "{config}"
OPTION = "--trial-command"
LIKE = f'like "python my_train.py {CONFIG}"'


@dataclass(frozen=True)
class TrialCommand:
    """The command's words, files of the user as absolute paths; those are `inputs`."""

    words: tuple[str, ...]
    inputs: tuple[Path, ...]

    def __str__(self) -> str:
        """What gives the same command again, typed anywhere."""
        return " ".join(word if word == CONFIG else shlex.quote(word) for word in self.words)

    def for_config(self, config: Path) -> tuple[str, ...]:
        """The words for one trial."""
        return tuple(word.replace(CONFIG, str(config)) for word in self.words)

    def check_program(self) -> None:
        """Raises InputError where the program is not on this machine."""
        program = self.words[0]
        if shutil.which(program) is None:
            raise InputError(OPTION, f"there is no program '{program}' here", LIKE)


def parse_trial_command(text: str, here: Path) -> TrialCommand:
    """The command as it was typed in the folder `here`; raises InputError.

    A word that names a file from there becomes absolute; one that names a folder, only with a slash
    in it or behind `--option=`, else it may as well be a plain word. So does the first word, which
    is a program to be looked up, and the word behind `-m`, which is a module.
    """
    try:
        typed = shlex.split(text)
    except ValueError as error:
        raise InputError(OPTION, f"cannot be read: {error}", LIKE) from None
    if not typed:
        raise InputError(OPTION, "is empty", LIKE)
    if not any(CONFIG in word for word in typed):
        raise InputError(OPTION, f"has no {CONFIG}, so the script would learn nothing", LIKE)
    words, inputs = [], []
    for place, word in enumerate(typed):
        option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
        path = Path(os.path.abspath(here / value))
        is_name = "/" not in value and (place == 0 or typed[place - 1] == "-m")
        is_name = is_name or ("/" not in value and not option and path.is_dir())
        is_program = place == 0 and value.startswith("/")
        if value.endswith(".py") and not path.exists() and not os.path.isabs(value):
            raise InputError(OPTION, f"there is no file '{value}' in {here}", LIKE)
        if not value or is_name or is_program or not path.exists():
            words.append(word)
            continue
        words.append(f"{option}{equals}{path}")
        inputs.append(path)
    return TrialCommand(tuple(words), tuple(inputs))
