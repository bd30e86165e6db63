"""The structure that docs/design.md promises: floors, no circles, and what the library must not know."""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

# Longest prefix wins. A module imports from its own floor or from below, never up.
FLOORS = {
    "difftumor": 1,
    "difftumor.__main__": 5,
    "difftumor.artifact_config": 2,
    "difftumor.artifacts": 2,
    "difftumor.devices": 2,
    "difftumor.diffusion": 2,
    "difftumor.volume": 2,
    "difftumor.organs": 2,
    "difftumor.datasets": 3,
    "difftumor.bridges": 4,
    "difftumor.features": 3,
    "difftumor.inference": 3,
    "difftumor.tumor_filters": 3,
    "difftumor.prediction": 4,
    "difftumor.published": 3,
    "difftumor.reconstruction": 3,
    "difftumor.robustness": 4,
    "difftumor.synthesis": 3,
    "difftumor.evaluation": 4,
    "difftumor.image_quality": 4,
    "difftumor.autoencoder_card": 4,
    "difftumor.cli": 5,
    "stages": 5,
    "studies": 6,
}


def _modules() -> Iterator[tuple[str, Path]]:
    for package in ("difftumor", "stages", "studies"):
        for file in sorted((REPOSITORY / package).rglob("*.py")):
            parts = file.relative_to(REPOSITORY).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), file


MODULES = dict(_modules())


def _imports(file: Path) -> set[str]:
    """Modules that a file imports, wherever the statement stands; names are resolved to modules of ours."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (members & set(MODULES)) or {node.module}
    return found


def _floor(module: str) -> int:
    return FLOORS[max((prefix for prefix in FLOORS if f"{module}.".startswith(f"{prefix}.")), key=len)]


@pytest.mark.parametrize("module", MODULES)
def test_imports_never_go_up(module):
    upward = {name for name in _imports(MODULES[module]) & set(MODULES) if _floor(name) > _floor(module)}
    assert not upward, f"{module} (floor {_floor(module)}) imports {upward} from above"


def test_no_circles():
    graph = {module: _imports(file) & set(MODULES) - {module} for module, file in MODULES.items()}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for below in sorted(graph[module]):
                visit(below, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("module", MODULES)
def test_names_are_imported_from_their_owners(module):
    borrowed = []
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.ImportFrom)
            and (owner := MODULES.get(node.module or ""))
            and owner.name != "__init__.py"
        ):
            body = ast.parse(owner.read_text(encoding="utf-8")).body
            imported = {a.asname or a.name for n in body if isinstance(n, ast.ImportFrom) for a in n.names}
            borrowed += [f"{node.module}.{alias.name}" for alias in node.names if alias.name in imported]
    assert not borrowed, f"{module} imports {borrowed}, which come from elsewhere"


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("difftumor")])
def test_library_needs_no_training_framework(module):
    roots = {name.split(".")[0] for name in _imports(MODULES[module])}
    assert not roots & {"pytorch_lightning", "lightning", "hydra", "omegaconf", "stages", "submitit"}


def test_top_level_holds_what_design_names():
    tracked = {
        "difftumor", "configs", "stages", "tests", "checkpoints", "benchmarks", "studies", "docs",
        "pyproject.toml", "README.md", "Makefile", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md",
    }  # fmt: skip
    listing = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout")
    assert {line.split("/")[0] for line in listing.stdout.splitlines() if not line.startswith(".")} == tracked
