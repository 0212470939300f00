"""`pip install .`: the program in one folder of its own; all else is in pyproject.toml.

Its packages have everyday names (study, trainer), which may be those of others too, and pip lets
one distribution overwrite the files of another. So all lies below site-packages/rml_optimization_
program/. The command puts that folder first on its path, and a .pth file puts it last on
everybody's, for `python -m trainer` and `from trainer.predict import …`.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

FOLDER = "rml_optimization_program"
REQUIREMENTS = ("requirements.txt", "trainer/requirements.txt")
"""The second is what the first one includes; pip reads that, setuptools does not."""


class BuildWithPath(build_py):
    """Adds the .pth file, and leaves this one out."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """The modules of a package: (package, module, file)."""
        found = super().find_package_modules(package, package_dir)
        return [module for module in found if module[1] != "setup"]

    def run(self) -> None:
        """Copies the modules, and writes it beside them."""
        super().run()
        Path(self.build_lib, f"{FOLDER}.pth").write_text(f"{FOLDER}\n", encoding="utf-8")


here = Path(__file__).resolve().parent
lines = [line.strip() for name in REQUIREMENTS for line in (here / name).read_text().splitlines()]
packages = find_packages(str(here), include=["study*", "launchers*", "trainer*"])
# Not into the checkout: what an earlier build left in build/ would go into the next one.
with TemporaryDirectory() as build:
    setup(
        install_requires=[line for line in lines if line and line[0] not in "#-"],
        packages=[FOLDER, *(f"{FOLDER}.{name}" for name in packages)],
        package_dir={FOLDER: "."},
        package_data={
            FOLDER: [
                "layers/*.json",
                "configs/*.json",
                "Dockerfile",
                ".dockerignore",
                "requirements.lock",
            ],
            f"{FOLDER}.trainer": ["requirements.txt"],
        },
        cmdclass={"build_py": BuildWithPath},
        options={"build": {"build_base": build}, "egg_info": {"egg_base": build}},
    )
