"""Tables and records as files."""

import pytest

from difftumor.reporting.tables import Table, write_json


def test_bars_in_cells_are_escaped():
    assert Table(["a"], [["x|y"]]).markdown().splitlines()[-1] == "| x\\|y |"


def test_json_refuses_what_is_not_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", float("nan"))
    assert list(tmp_path.iterdir()) == []
