"""The figure of how tumors look: each set drawn once, told from the others, missing values left out."""

import math

import numpy as np

from difftumor.evaluation.realism.figures import appearance_figure
from tests.scans.test_appearance import tumor_of


def test_the_figure_draws_each_set_once_and_bears_missing_values():
    sets = {"real": [tumor_of(-10, 5), tumor_of(-30, 6)], "synthetic": [tumor_of(math.nan, 4, [math.nan] * 16)], "": []}
    contrast, sd, edge = appearance_figure(sets, title="Tumors").axes
    steps = contrast.lines[0].get_xydata()
    assert steps[np.isfinite(steps).all(axis=1)].tolist() == [[-30, 0], [-30, 0.5], [-10, 1]]
    assert len([line for line in contrast.lines if len(line.get_xdata()) > 1]) == 1
    assert len([line for line in sd.lines if len(line.get_xdata()) > 1]) == 2
    assert edge.lines[0].get_xdata().tolist() == [k + 0.5 for k in range(-8, 8)]
    assert edge.lines[0].get_ydata().tolist() == [-20] * 8 + [0] * 8
    assert [text.get_text() for text in edge.figure.legends[0].get_texts()] == ["real (2)", "synthetic (1)", " (0)"]


def test_no_two_of_many_sets_look_the_same_and_the_first_has_a_band():
    sets = {str(number): [tumor_of(-10 * number, 5), tumor_of(-12, 6)] for number in range(14)}
    edge = appearance_figure(sets).axes[2]
    labels = [text.get_text() for text in edge.figure.legends[0].get_texts()]
    lines = [line for line in edge.lines if line.get_label() in labels]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 14
    assert len({line.get_color() for line in lines[:7]}) == 7
    assert len(edge.collections) == 1
    band = edge.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (-12, 0)  # mean -6, standard deviation 6
    shells = [math.nan] * 7 + [-10.0] + [0.0] * 8
    edge = appearance_figure({"coarse": [tumor_of(-10, 5, shells), tumor_of(-10, 5, shells)]}).axes[2]
    assert np.isfinite(edge.collections[0].get_paths()[0].vertices).all()
