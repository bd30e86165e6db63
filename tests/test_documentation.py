"""Commands in the documentation parse and Python snippets run; tests/stages/demo/test_run.py runs the README."""

import importlib
import re
import subprocess

import pytest
import typer

from difftumor.cli import app
from stages.cluster.options import read_cluster
from stages.config.compose import compose_config
from stages.submit import checked, expand
from studies.transfer.options import read_words
from tests.conftest import REPOSITORY
from tests.documentation import PREPARE, blocks, commands

PAGES = sorted(
    [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *(REPOSITORY / "docs").glob("*.md")],
    key=lambda page: page.name,
)
COMMANDS = [pytest.param(words, id=f"{page.name}: {' '.join(words)}") for page in PAGES for words in commands(page)]


@pytest.mark.parametrize("words", COMMANDS)
def test_command_is_understood(words):
    program, *rest = words
    if program == "make":
        target = next(word for word in rest if "=" not in word)
        assert re.search(rf"^{target}:", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE)
    elif program == "difftumor":
        group = typer.main.get_command(app.build_app(app.COMMANDS))
        command, words = group.commands[rest[0]], rest  # type: ignore[attr-defined]
        while hasattr(command, "commands"):
            words = words[1:]
            command = command.commands[words[0]]
        command.make_context(words[0], words[1:])  # parses and checks the options, runs nothing
    elif program == "python" and rest[1] == "stages.submit":
        if rest[2] != "status":
            assert [checked(rest[2], each) for each in expand(rest[2], read_cluster(rest[3:])[1])]
    elif program == "python" and rest[1].startswith("stages."):
        compose_config(rest[1].removeprefix("stages."), rest[2:])
    elif program == "python" and rest[1].startswith("studies."):
        package = (REPOSITORY / rest[1].replace(".", "/")).is_dir()
        study = importlib.import_module(f"{rest[1]}.study" if package else rest[1]).STUDY
        _, options = read_cluster(getattr(study.parser().parse_intermixed_args(rest[2:]), "options", []))
        if study.name == "transfer":
            read_words(options)
        else:
            compose_config("diffusion" if study.name in ("timesteps", "sarcoma") else "segmentation", options)
    elif program == "python":
        assert (REPOSITORY / rest[0]).is_file()
    elif program == "source":
        assert rest == [".venv/bin/activate"]
    else:
        assert program.startswith(".venv/bin/")


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_snippets_run(page, tmp_path, monkeypatch):
    """The snippets of a page run in its order, each with the names of those before it."""
    monkeypatch.chdir(tmp_path)
    PREPARE[page.name](tmp_path)
    names: dict[str, object] = {}
    for snippet in blocks(page, "python"):
        exec(compile(snippet, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_changelog_names_the_version():
    version = re.search(r'^version = "(.+)"', (REPOSITORY / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert version
    text = (REPOSITORY / "CHANGELOG.md").read_text()
    assert "## Unreleased" in text or f"## {version[1]}" in text


def test_no_path_of_one_machine_is_tracked():
    listing = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout")
    pattern = re.compile(r"(?<![\w./])/(home|root|work|Users)/")
    for name in listing.stdout.splitlines():
        if name.endswith((".py", ".md", ".toml", ".yaml", "Makefile", "run")) and "test_documentation" not in name:
            assert not pattern.search((REPOSITORY / name).read_text(encoding="utf-8")), name
