"""What commands share that work through many scans."""

import pytest

from difftumor.cli.many import summarized
from difftumor.errors import CaseListError, first_few


def summarize(out, names, status, error=None):
    """Write a summary of cases, in another order than theirs, and end by an error."""
    with summarized(out, ("case", "status", "error"), names) as rows:
        rows += [{"case": name, "status": status, "error": ""} for name in reversed(names)]
        if error is not None:
            raise error


@pytest.mark.parametrize(("count", "named"), [(1, "0"), (5, "0, 1, 2, 3, 4"), (6, "0, 1, 2, 3, 4, …")])
def test_errors_name_the_first_five(tmp_path, count, named):
    names = [str(number) for number in range(count)]
    assert first_few(names) == named
    with pytest.raises(CaseListError, match=rf"{count} of {count} scans failed \({named}\): see .*summary.csv"):
        summarize(tmp_path, names, "failed")


def test_the_summary_is_in_the_order_of_the_list_and_survives_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        summarize(tmp_path, ["b", "a"], "made", KeyboardInterrupt())
    assert (tmp_path / "summary.csv").read_text().splitlines() == ["case,status,error", "b,made,", "a,made,"]
