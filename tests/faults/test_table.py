"""The table of docs/reliability.md has every test of this folder, and counts what they do."""

import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.faults.__main__ import BEGIN, END, HERE, PAGE, place
from tests.faults.table import ROWS


def shown():
    text = PAGE.read_text(encoding="utf-8")
    return BEGIN + text.split(BEGIN)[1].split(END)[0] + END


@pytest.mark.slow
def test_the_table_counts_the_tests_that_are_there():
    words = [sys.executable, "-m", "tests.faults", "--show"]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == shown(), "rerun python -m tests.faults"


def test_each_row_of_the_table_is_shown_with_its_files():
    lines = shown().splitlines()
    for row in ROWS:
        (line,) = [line for line in lines if line.startswith(f"| {row.harm} | {row.how} | ")]
        for test in row.tests:
            file = place(test).partition("::")[0]
            assert f"../{file})" in line
            assert (REPOSITORY / file).is_file()


def test_each_file_of_harm_is_in_the_table():
    files = {f"{HERE}{file.name}" for file in (REPOSITORY / HERE).glob("test_*.py")} - {f"{HERE}test_table.py"}
    assert files <= {place(test).partition("::")[0] for row in ROWS for test in row.tests}
