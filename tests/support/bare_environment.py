"""A virtual environment with nothing in it but what `pip install .` brings and what is named beside it.

Made of links to the distributions that are already installed, so it takes a second and no network. What else is
installed beside the tests (plugins, matplotlib, transformers) cannot be imported there.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
import zipfile
from collections.abc import Collection, Iterable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]


def core_requirements() -> list[str]:
    """What pyproject.toml makes `pip install .` bring along."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]


def closure(requirements: Iterable[str], without: Collection[str] = ()) -> dict[str, metadata.Distribution]:
    """Normalized name -> installed distribution, of `requirements` and of all that they require here in turn.

    without  these are left out, and what only they require
    Skips the test when one of them is not installed.
    """
    found: dict[str, metadata.Distribution] = {}
    waiting = [r for r in map(Requirement, requirements) if _wanted_here(r)]
    while waiting:
        asked = waiting.pop()
        name = normalized(asked.name)
        if name in found or name in without:
            continue
        try:
            found[name] = metadata.distribution(asked.name)
        except metadata.PackageNotFoundError:
            pytest.skip(f"{asked.name} is not installed here, and this test downloads nothing")
        required = [Requirement(r) for r in found[name].requires or ()]
        waiting += [r for r in required if _wanted_here(r, asked.extras)]
    return found


def _wanted_here(requirement: Requirement, extras: Collection[str] = ()) -> bool:
    """Whether this Python on this system needs `requirement` of a distribution of which `extras` were asked."""
    return requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in {"", *extras})


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


class BareEnvironment:
    """An environment in `folder` that holds `requirements` and their requirements.

    without  these are left out, and what only they require
    """

    def __init__(self, folder: Path, requirements: Iterable[str], without: Collection[str] = ()) -> None:
        self.bin = folder / "bin"
        venv.EnvBuilder(symlinks=True, with_pip=False).create(folder)
        self.site_packages = Path(
            subprocess.run(
                [self.bin / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
                capture_output=True, text=True, check=True,
            ).stdout.strip()
        )  # fmt: skip
        self.distributions = closure(requirements, without)
        for distribution in self.distributions.values():
            for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
                link = self.site_packages / top
                if not link.is_symlink():  # folders of namespace packages belong to several distributions
                    link.symlink_to(distribution.locate_file(top))
        for distribution in self.distributions.values():
            for script in distribution.entry_points.select(group="console_scripts"):
                self._write_script(script)

    def _write_script(self, script: metadata.EntryPoint) -> None:
        """As pip writes it: unlike `python -m pytest`, it does not put the current folder on sys.path."""
        file = self.bin / script.name
        file.write_text(
            f"#!{self.bin / 'python'}\nimport sys\nfrom {script.module} import {script.attr}\n"
            f"sys.exit({script.attr}())\n"
        )
        file.chmod(0o755)

    def install(self, tree: Path) -> None:
        """Build `tree`'s wheel and unpack it here. The environment that runs the tests lends pip and setuptools."""
        # Not imported: setuptools refuses to be, in a process in which something has imported distutils.
        for needed in ("pip", "setuptools"):
            if find_spec(needed) is None:
                pytest.skip(f"{needed} is not installed here")
        built = subprocess.run(
            [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index",
             "--no-build-isolation", "--wheel-dir", tree / "dist", tree],
            capture_output=True, text=True,
        )  # fmt: skip
        assert built.returncode == 0, built.stdout + built.stderr
        (wheel,) = (tree / "dist").glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(self.site_packages)

    def run(self, program: str, *arguments: object, cwd: Path, timeout: float = 280) -> subprocess.CompletedProcess:
        """Run `bin/program arguments` in `cwd`; stdout holds stderr too."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "PYTHON"))}
        environment |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "110"}
        return subprocess.run(
            [self.bin / program, *map(str, arguments)],
            cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout,
        )  # fmt: skip
