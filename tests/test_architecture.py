"""The structure that docs/design.md promises: floors, no circles, and what the library must not know."""

import ast
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

# The rooms of the library from the bottom up; rooms of one line are side by side and do not know each other. A module
# imports from its own room or from below, never up.
LEVELS = (
    {"errors", "seeding", "files"},
    {"scans"},
    {"reporting"},
    {"datasets", "models"},
    {"segmentation"},
    {"synthesis"},
    {"evaluation"},
    {"exchange"},
    {"cli"},
    {"__main__"},
    {"stages"},
    {"studies"},
)
BASE = LEVELS[0]
MOST_FILES = 12


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


def _room(module: str) -> str:
    """Return the room of a module: the first folder below ``difftumor``, or ``stages`` or ``studies``."""
    package, *inner = module.split(".")
    return inner[0] if package == "difftumor" and inner else package


def _level(room: str) -> int:
    return next(number for number, rooms in enumerate(LEVELS) if room in rooms)


@pytest.mark.parametrize("module", [m for m in MODULES if m != "difftumor"])
def test_imports_never_go_up(module):
    room = _room(module)
    found = {name for name in _imports(MODULES[module]) & set(MODULES) if name != "difftumor"}
    upward = {
        name
        for name in found
        if _level(_room(name)) > _level(room)
        or (_level(_room(name)) == _level(room) and _room(name) != room and room not in BASE)
    }
    assert not upward, f"{module} imports {upward} from above or beside it"


def test_no_folder_holds_more_than_a_stranger_looks_through():
    folders = {file.parent for file in MODULES.values()}
    crowded = {
        str(folder.relative_to(REPOSITORY)): len(files)
        for folder in folders
        if len(files := [f for f in folder.glob("*.py") if not f.name.startswith("__")]) > MOST_FILES
    }
    assert not crowded
    names = {path.name for path in (REPOSITORY / "difftumor").iterdir() if not path.name.startswith(("__", "py.typed"))}
    assert len(names) <= MOST_FILES, sorted(names)


def test_no_circles():
    # The front door imports from every room, and rooms import the version from it.
    rooms = {module: file for module, file in MODULES.items() if module != "difftumor"}
    graph = {module: _imports(file) & set(rooms) - {module} for module, file in rooms.items()}
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


def test_no_class_name_is_defined_twice():
    files = [*MODULES.values(), *(REPOSITORY / "benchmarks").glob("*.py")]
    names = [
        node.name
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    ]
    assert sorted(name for name, count in Counter(names).items() if count > 1) == []


def test_top_level_holds_what_design_names():
    tracked = {
        "difftumor", "configs", "containers", "stages", "tests", "checkpoints", "benchmarks", "studies", "docs",
        "pyproject.toml", "README.md", "Makefile", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md",
    }  # fmt: skip
    listing = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout")
    assert {line.split("/")[0] for line in listing.stdout.splitlines() if not line.startswith(".")} == tracked


@pytest.mark.parametrize("module", MODULES)
def test_docstrings_say_what_they_mean_in_place(module):
    text = MODULES[module].read_text(encoding="utf-8")
    assert not re.search(r"See there\b|as for all that follow", text), f"{module} refers to another docstring"
