"""What docs/design.md and CONTRIBUTING.md say of the code is so: the map of files, and where things are answered."""

import ast
import re

import pytest

from tests.conftest import REPOSITORY
from tests.tree import PAGE, tree

TEXT = PAGE.read_text(encoding="utf-8")
QUESTIONS = re.findall(r"^\| ([A-Z][^|]*\?) \| `([\w/.]+)` \| `(\w+)` \|$", TEXT, flags=re.MULTILINE)


def test_every_file_is_on_the_map_and_no_other():
    assert tree() in TEXT, "run: python -m tests.tree"


def test_all_questions_are_read():
    assert len(QUESTIONS) == 25


@pytest.mark.parametrize(("question", "file", "name"), QUESTIONS)
def test_a_question_is_answered_where_the_page_says(question, file, name):
    defined = set()
    for node in ast.parse((REPOSITORY / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Assign):
            defined |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            defined.add(node.target.id)
    assert name in defined


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/design.md"])
def test_files_that_are_named_exist(page):
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    named = re.findall(r"`((?:difftumor|stages|studies|tests|configs|docs|benchmarks)/[\w./]+)`", text)
    assert named
    assert [path for path in named if not (REPOSITORY / path).exists()] == []
