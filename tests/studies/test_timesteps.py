"""The study of timesteps: from the command line to the page, and again without training anew."""

import html
import shlex

import numpy as np
import pytest

from difftumor.scans.appearance import appearance_distance
from studies.jobs.comparison import HEALTHY, REAL, Compared, Comparison
from studies.timesteps import STUDY, TimestepsGraph, main, timesteps_figure
from tests.conftest import read_rows
from tests.studies.jobs.test_comparison import options

FILES = ["appearance.png", "report.html", "timesteps.csv", "timesteps.md", "timesteps.png", "tumors.png"]


def written(folder, pattern):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.glob(pattern))}


def without_key(artifact):
    """Name of a job, without the key that its folder has."""
    return artifact.name.rpartition("-")[0]


@pytest.mark.slow
def test_it_trains_each_once_and_leaves_table_pictures_and_page(folder, tmp_path, capfd):
    out = tmp_path / "study"
    words = [
        "run", "--timesteps", "2,1", "--pictured", "2", "--device", "cpu", "--out", str(out),
        *options(folder, "training.steps=2", "validation.synthesize_every_n_epochs=0"),
    ]  # fmt: skip
    assert main(words) == 0
    assert capfd.readouterr().out.endswith(f"The report is at {out}/report.html\n")
    assert sorted(path.name for path in out.iterdir() if path.is_file()) == FILES
    rows = {row["tumors of"]: row for row in read_rows(out / "timesteps.csv")}
    assert list(rows) == [REAL, HEALTHY, "T = 1", "T = 2"]
    assert {row["tumors"] for name, row in rows.items() if name != REAL} == {"3"}
    for name in ("T = 1", "T = 2"):
        assert float(rows[name]["seconds_per_tumor"]) > 0
        assert float(rows[name]["contrast_distance_hu"]) > 0
    assert rows["T = 1"]["contrast_distance_hu"] != rows["T = 2"]["contrast_distance_hu"]
    page = (out / "report.html").read_text()
    assert html.escape(shlex.join(["python", "-m", "studies.timesteps", *words])) in page
    assert page.count("<figure>") == 3

    before = written(out, "checkpoints/*/*")
    assert {without_key(path.parent) for path in before} >= {"T001", "T002"}
    (out / "tumors.png").unlink()
    assert main(words) == 0
    assert written(out, "checkpoints/*/*") == before
    assert (out / "tumors.png").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["organ=liver", "fold=null"], "holds out no early liver tumor to compare with"),
        (["organ=liver", "data.rot=x"], "Unknown option 'data.rot': did you mean 'data.root'?"),
        (["optimizer.lr=-1"], "optimizer.lr is -1: give a number above 0."),
        (["--device", "tpu"], "tpu"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(folder, tmp_path, never_run, capsys, words, message):
    assert main(["run", "--out", str(tmp_path), *options(folder), *words]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("numbers", ["0,1", "4,4", "a", "1,,2", "-1", ""])
def test_numbers_of_timesteps_are_checked(numbers, capsys):
    with pytest.raises(SystemExit):
        main(["plan", f"--timesteps={numbers}", "organ=liver"])
    assert "give numbers from 1 up, each once, such as 1,4,200" in capsys.readouterr().err


def test_options_overrule_nothing_that_the_study_decides(folder, tmp_path):
    words = ["plan", "--timesteps", "7", "--out", str(tmp_path), *options(folder, "name=mine", "diffusion.timesteps=3")]
    (node,) = TimestepsGraph(STUDY.parser().parse_intermixed_args(words)).nodes.values()
    last = dict(word.split("=", 1) for word in node.words)
    assert (last["name"], last["diffusion.timesteps"], last["diffusion.sampler.kind"]) == (node.id, "7", "ddpm")
    assert last["artifact"] == f"{tmp_path}/checkpoints/{node.id}"


def test_the_figure_shows_each_distance_and_time_over_the_timesteps():
    distance = appearance_distance([], [])
    values = [type(distance)(contrast_hu=9.0, sd_hu=3.0, edge_hu=4.0 + number) for number in range(2)]
    models = tuple(
        Compared(f"T = {t}", (), value, (), seconds)
        for t, value, seconds in zip((1, 200), values, (0.5, 2), strict=True)
    )
    references = (Compared(REAL, (), values[0]), Compared(HEALTHY, (), distance))
    comparison = Comparison(
        real=(), hosts=(), references=references, models=models, spacing_mm=(1, 1, 1), window=None
    )  # fmt: skip
    figure = timesteps_figure(comparison, (1, 200))
    quality, speed = figure.axes
    assert [line.get_ydata().tolist() if isinstance(line.get_ydata(), np.ndarray) else list(line.get_ydata())
            for line in quality.lines] == [[9, 9], [9, 9], [3, 3], [3, 3], [4, 5], [4, 4]]  # fmt: skip
    assert list(speed.lines[0].get_ydata()) == [0.5, 2]
    figure.draw_without_rendering()
    low, high = speed.get_ylim()
    shown = [tick for tick in speed.get_yticks() if low <= tick <= high]
    assert len(shown) >= 2
    assert [text.get_text() for text in speed.texts] == ["0.5 s", "2 s"]
