"""What is declared in pyproject.toml is what is imported, and a missing extra is named."""

import ast
import re
import subprocess
import sys
import tomllib

import pytest

from stages import EXTRA
from tests.conftest import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Packages whose modules have another name.
MODULES = {
    "connected-components-3d": "cc3d",
    "hydra-core": "hydra",
    "pyyaml": "yaml",
}
# Imported by others: einops by MONAI's Swin UNETR, which is one of our segmenters.
INDIRECT = {"einops"}
# Installed with a package of another name: OmegaConf with Hydra.
WITH = {"omegaconf": "hydra", "lightning_utilities": "pytorch_lightning"}
# Known to type checkers alone.
STUBS = {"_typeshed"}


def declared(requirements: list[str]) -> set[str]:
    names = {re.match(r"[\w-]+", requirement)[0].lower() for requirement in requirements}
    return {MODULES.get(name, name.replace("-", "_")) for name in names}


def imported(*packages: str) -> set[str]:
    """Modules of others that the files of ``packages`` import, at the top or inside of functions."""
    found = set()
    for package in packages:
        for file in (REPOSITORY / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    found |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    found.add(node.module.split(".")[0])
    ours = {"difftumor", "stages", "studies"} | STUBS
    return {WITH.get(name, name) for name in found - ours if name not in sys.stdlib_module_names}


LIBRARY = declared(PROJECT["dependencies"])
TRAIN = declared(PROJECT["optional-dependencies"]["train"])


def test_the_wheel_needs_what_the_library_imports():
    assert imported("difftumor") == LIBRARY - INDIRECT


def test_the_extra_is_what_training_needs_beyond():
    assert imported("stages", "studies") - LIBRARY == TRAIN == set(EXTRA)


def test_dependencies_are_explained():
    page = (REPOSITORY / "docs" / "dependencies.md").read_text(encoding="utf-8")
    extras = PROJECT["optional-dependencies"].values()
    for requirement in [*PROJECT["dependencies"], *(each for extra in extras for each in extra)]:
        assert re.match(r"[\w-]+", requirement)[0] in page, requirement


@pytest.mark.parametrize("stage", ["autoencoder", "diffusion", "segmentation", "demo"])
def test_a_missing_extra_is_named(stage):
    hidden = "import sys; sys.modules['lpips'] = None; import runpy; "
    done = subprocess.run(
        [sys.executable, "-c", f"{hidden}runpy.run_module('stages.{stage}', run_name='__main__')"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: Training needs lpips: install the extra with pip install -e '.[train]', or run make "
        "install."
    )
