"""Curves and PNG files."""

import numpy as np
import pytest

from difftumor.files.writing import written_whole
from difftumor.reporting.plots import curves, save_png, to_png


def lines(figure):
    return {line.get_label(): line.get_xydata() for line in figure.axes[0].lines}


def test_curves_leave_out_what_cannot_be_plotted():
    figure = curves({"loss": ([0, 1, 2, 3], [1.0, np.nan, -1.0, 0.5])}, log=True)
    np.testing.assert_array_equal(lines(figure)["loss"], [[0, 1.0], [3, 0.5]])
    assert figure.axes[0].get_yscale() == "log"
    assert to_png(figure).startswith(b"\x89PNG")


def test_smoothing_a_constant_changes_nothing_and_short_curves_stay():
    steps = np.arange(60)
    figure = curves({"flat": (steps, np.full(60, 3.0)), "short": ([0, 1], [1.0, 0.0])}, smoothing=0.9)
    np.testing.assert_allclose(lines(figure)["flat"][:, 1], 3.0)
    np.testing.assert_array_equal(lines(figure)["short"][:, 1], [1.0, 0.0])


def test_curves_refuse_unequal_lengths():
    with pytest.raises(ValueError, match="'loss'"):
        curves({"loss": ([0, 1], [1.0])})
    with pytest.raises(ValueError, match="smoothing"):
        curves({}, smoothing=1.0)


def test_png_is_the_same_each_time_and_whole(tmp_path):
    path = save_png(curves({"a": ([0, 1], [1, 2])}), tmp_path / "new" / "a.png")
    assert path.read_bytes() == to_png(curves({"a": ([0, 1], [1, 2])}))
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with written_whole(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1
