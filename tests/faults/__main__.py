"""Write the table of docs/reliability.md from the tests: ``python -m tests.faults``.

``--show`` prints it instead; ``--elsewhere`` prints the tests that are not in tests/faults, for ``make test-faults``.
"""

import contextlib
import io
import sys
from collections import Counter
from fnmatch import fnmatchcase

import pytest

from tests.conftest import REPOSITORY
from tests.faults.table import ROWS, Row

PAGE = REPOSITORY / "docs" / "reliability.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"
HERE = "tests/faults/"


class _Counting:
    """Counts how often each test does harm."""

    def __init__(self) -> None:
        self.times: Counter[str] = Counter()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            mark = item.get_closest_marker("harms")
            self.times[item.nodeid.partition("[")[0]] += mark.args[0] if mark else 1


def counted() -> Counter[str]:
    """Return how often each test does harm, of tests/faults and all that the table names."""
    counting = _Counting()
    with contextlib.redirect_stdout(io.StringIO()) as said:
        files = {place(test).partition("::")[0] for row in ROWS for test in row.tests}
        status = pytest.main(
            ["--collect-only", "-q", "-p", "no:cacheprovider", HERE, *sorted(files)], plugins=[counting]
        )
    assert status == 0, said.getvalue()
    return Counter(
        {test: times for test, times in counting.times.items() if not test.startswith(f"{HERE}test_table.py")}
    )


def place(test: str) -> str:
    """Return a test of the table with its folder."""
    return test if "/" in test else f"{HERE}{test}"


def of(row: Row, times: Counter[str]) -> list[str]:
    """Return the tests of a row.

    Raises:
        ValueError: The table names one that is not there.
    """
    for pattern in map(place, row.tests):
        if not any(fnmatchcase(test, pattern) for test in times):
            raise ValueError(f"There is no test {pattern}: correct tests/faults/table.py.")
    return [test for test in times if any(fnmatchcase(test, pattern) for pattern in map(place, row.tests))]


def table(times: Counter[str]) -> str:
    """Return the block of the page, with its markers.

    Raises:
        ValueError: A test of tests/faults is in no row.
    """
    if missing := [test for test in times if test.startswith(HERE) and not any(test in of(row, times) for row in ROWS)]:
        raise ValueError(f"{missing[0]} is in no row of tests/faults/table.py: add it.")
    lines = ["| harm | how | times | what comes of it | tests |", "|---|---|---|---|---|"]
    for row in ROWS:
        tests = of(row, times)
        files = sorted({test.partition("::")[0] for test in tests})
        links = ", ".join(f"[{file.rpartition('/')[2].removesuffix('.py')}](../{file})" for file in files)
        lines.append(f"| {row.harm} | {row.how} | {sum(times[test] for test in tests)} | {row.outcome} | {links} |")
    return BEGIN + "\n".join(lines) + f"\n\n{sum(times[test] for test in _all(times))} times in all.\n" + END


def _all(times: Counter[str]) -> set[str]:
    return {test for row in ROWS for test in of(row, times)}


def main(words: list[str]) -> None:
    """Do what the command line says."""
    times = counted()
    if words == ["--elsewhere"]:
        print("\n".join(sorted(test for test in _all(times) if not test.startswith(HERE))))
    elif words == ["--show"]:
        print(table(times), end="")
    else:
        text = PAGE.read_text(encoding="utf-8")
        before, rest = text.split(BEGIN)
        PAGE.write_text(before + table(times) + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
