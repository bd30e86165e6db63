"""What the definitions of containers name is there, and both make the same."""

import re
import shlex
import tomllib

import pytest

from tests.conftest import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HOME = "/opt/difftumor/"


def lines(file):
    """The lines of a definition, without comments."""
    text = (REPOSITORY / "containers" / file).read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


def commands(file):
    """The shell commands that a definition runs as root."""
    if file == "Dockerfile":
        found = [line.removeprefix("RUN ") for line in lines(file) if line.startswith("RUN ")]
        return [part for line in found for part in line.split(" && ")]
    inside = lines(file)[lines(file).index("%post") + 1 : lines(file).index("%runscript")]
    return [part for line in inside for part in line.split(" && ") if not part.startswith("cd ")]


def base(file):
    (line,) = [line for line in lines(file) if re.match(r"from:? ", line, re.IGNORECASE)]
    return line.split()[1]


def copied():
    """What each definition copies, by its place in the container."""
    docker = {}
    for line in lines("Dockerfile"):
        if line.startswith("COPY "):
            *sources, target = line.split()[1:]
            docker |= {HOME + (source if target == "./" else target): source for source in sources}
    inside = lines("difftumor.def")
    files = inside[inside.index("%files") + 1 : inside.index("%post")]
    return docker, {target: source for source, target in (line.split() for line in files)}


FILES = ("Dockerfile", "difftumor.def")


def test_both_make_the_same():
    assert base("Dockerfile") == base("difftumor.def")
    assert commands("Dockerfile") == commands("difftumor.def")
    docker, apptainer = copied()
    assert docker == apptainer


@pytest.mark.parametrize("file", FILES)
def test_python_is_the_one_that_is_tested(file):
    name, _, tag = base(file).partition(":")
    version = re.match(r"\d+\.\d+", tag)[0]
    assert name == "python"
    assert f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]
    first = (REPOSITORY / ".ci/constraints.txt").read_text(encoding="utf-8").splitlines()[0]
    assert f"Python {version}" in first  # the versions that are installed were chosen for it


@pytest.mark.parametrize("file", FILES)
def test_what_is_installed_exists(file):
    (install,) = [shlex.split(line) for line in commands(file) if "pip install" in line]
    extras = re.fullmatch(r"\.\[(.+)\]", install[-1])[1].split(",")
    assert {"train"} <= set(extras) <= set(PROJECT["optional-dependencies"])
    assert (REPOSITORY / install[install.index("-c") + 1]).is_file()


def test_all_code_is_copied_to_where_it_is_expected():
    docker, _ = copied()
    for target, source in docker.items():
        assert target == HOME + source
        assert (REPOSITORY / source).exists()
    # What hatchling reads to build the package, and what the three stages and the studies consist of.
    needed = {
        "pyproject.toml",
        PROJECT["readme"],
        *PROJECT["license-files"],
        "difftumor",
        "stages",
        "studies",
        "configs",
    }
    assert needed <= set(docker.values())
    assert next(line for line in lines("Dockerfile") if line.startswith("WORKDIR")).split()[1] + "/" == HOME


def test_the_modules_that_apptainer_tests_exist():
    (line,) = [line for line in lines("difftumor.def") if line.startswith("python -c")]
    for module in re.findall(r"stages[.\w]+", line):
        assert (REPOSITORY / f"{module.replace('.', '/')}.py").is_file()
