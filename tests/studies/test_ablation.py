"""The ablation study: from the command line to the page, and again without training anew."""

import numpy as np
import pytest

from difftumor.evaluation.cohort.cases import evaluate_case
from difftumor.models.artifact_config import read_config
from difftumor.scans.grid import Grid
from studies.ablation import ABLATIONS, COMPONENTS, STUDY, declare, main, table_rows
from studies.jobs import segmenters
from studies.jobs.segmenters import SegmenterScores
from tests.conftest import read_rows
from tests.stages.tumor_cohort import SEGMENTATION, UNET
from tests.studies.test_timesteps import without_key, written

DSC, SENSITIVITY = "all tumors DSC (%)", "small tumors sensitivity (%)"


def words(folder, out, *more):
    return [
        "run", "--test", str(folder / "cohort"), "--out", str(out), "--device", "cpu", "--seeds", "1", "--steps", "4",
        *SEGMENTATION, *UNET, f"data.healthy_root={folder}/cohort", *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_it_trains_each_once_and_leaves_table_figure_and_page(folder, tmp_path, capfd, in_this_process):
    out = tmp_path / "study"
    assert main(words(folder, out)) == 0
    assert capfd.readouterr().out.endswith(f"The report is at {out}/report.html\n")
    rows = read_rows(out / "ablation.csv")
    assert [tuple(row[name] == "✓" for name in COMPONENTS) for row in rows] == list(ABLATIONS.values())
    assert all(0 <= float(row[DSC]) <= 100 for row in rows)
    assert {row[SENSITIVITY] for row in rows} == {""}  # all tumors of the cohort have a radius over 5 mm
    assert {path.name for path in out.iterdir() if path.is_file()} == {
        "ablation.csv", "ablation.md", "report.html", "trainings.png"
    }  # fmt: skip
    trainings = {without_key(path): read_config(path).training for path in (out / "checkpoints").iterdir()}
    assert len(trainings) == 5
    for name, (tiny, elastic, blurred) in ABLATIONS.items():
        options = trainings[f"{name}_0"]["config"]
        assert (options["tumors"], options["data"]["normalization"], options["seed"]) == ("handcrafted", "zscore", 0)
        synthesis = options["synthesis"]
        assert (synthesis["sizes"]["tiny"], synthesis["irregularity"], synthesis["blur_mm"]) == (
            float(tiny), float(elastic), None if blurred else 0.0
        )  # fmt: skip

    before = written(out, "checkpoints/*/*")
    (out / "trainings.png").unlink()
    assert main(words(folder, out)) == 0
    assert written(out, "checkpoints/*/*") == before
    assert (out / "trainings.png").is_file()


def declared(words):
    return declare(STUDY.parser().parse_intermixed_args(words))


def test_the_users_experiment_takes_the_place_of_the_studys(folder, tmp_path):
    graphs = [declared(words(folder, tmp_path, *more)) for more in ((), ("experiment=demo",))]
    own, demo = (next(iter(graph.nodes.values())).config for graph in graphs)
    assert (own["data"]["normalization"], demo["data"]["normalization"]) == ("zscore", "unit")
    assert own["synthesis"]["irregularity"] == demo["synthesis"]["irregularity"] == 0  # the first row's


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "synthesis.irregularity=0.5",
            "synthesis.irregularity is 0.5, but the ablation 'no elastic no blur' needs 0:",
        ),
        ("synthesis.irregularity=0", "synthesis.irregularity is 0, but the ablation 'no blur' needs another value:"),
        ("synthesis.blur_mm=1", "synthesis.blur_mm is 1, but the ablation 'no elastic no blur' needs 0:"),
        ("synthesis.blur_mm=0", "synthesis.blur_mm is 0, but the ablation 'no elastic' needs another value:"),
        ("synthesis.sizes.tiny=1", "synthesis.sizes.tiny is 1, but the ablation 'no tiny' needs 0:"),
        ("synthesis.sizes.mix=1", "synthesis.sizes.mix is 1, but the ablation 'no tiny' needs 0:"),
        ("synthesis.sizes.early=0.5", "synthesis.sizes.early is 0.5, but the ablation 'no tiny' needs 0:"),
        ("synthesis.sizes.tiny=0", "synthesis.sizes.tiny is 0, but the ablation 'no elastic no blur' needs more:"),
        ("tumors=diffusion", "tumors is diffusion, but the ablation 'no elastic no blur' needs handcrafted:"),
        ("synthesis.offline=made", "synthesis.offline is made, but the ablation 'no elastic no blur' needs null:"),
        ("ablation=full", "The study sets ablation itself: leave out ablation=full"),
    ],
)
def test_options_that_would_undo_the_ablation_are_refused_before_anything_is_trained(
    folder, tmp_path, never_run, capfd, option, message
):
    assert main(words(folder, tmp_path / "out", option)) == 1
    error = capfd.readouterr().err
    assert f"Error: {message}" in error
    assert "leave" in error
    assert not (tmp_path / "out").exists()


def test_options_of_other_sizes_are_left_to_the_user(folder, tmp_path):
    graph = declared(words(folder, tmp_path, "synthesis.sizes.large=0", "synthesis.probability=0.5"))
    assert {node.config["synthesis"]["probability"] for node in graph.nodes.values() if node.config} == {0.5}


def test_the_rows_are_those_of_table_4():
    runs = [SegmenterScores(0.2, 0.9, 0.5, 0.25, 1.0), SegmenterScores(0.4, 0.9, 0.7, 0.75, 2.0)]
    rows = table_rows(dict.fromkeys(ABLATIONS, runs))
    ticks = ["".join(str(row[name]) for name in COMPONENTS) for row in rows]
    assert ticks == ["✓––", "✓–✓", "✓✓–", "–✓✓", "✓✓✓"]
    assert {(row[DSC], row[SENSITIVITY]) for row in rows} == {("30.0 ± 14.1", "50.0 ± 35.4")}


def test_small_tumors_are_those_below_5_mm():
    truth = np.zeros((40, 20, 20), np.uint8)
    truth[1:-1, 1:-1, 1:-1] = 1
    # Equivalent radii of 3.1, 4.96 and 5.6 mm: cubes of 5, 8 and 9 voxels of 1 mm.
    for start, side in ((2, 5), (10, 8), (25, 9)):
        truth[start : start + side, 3 : 3 + side, 3 : 3 + side] = 2
    prediction = truth.copy()
    prediction[2:7] = np.minimum(prediction[2:7], 1)
    grid = Grid(truth.shape, np.eye(4))
    found = SegmenterScores.of([evaluate_case("a", prediction, truth, grid)])
    assert found.small_sensitivity == 0.5
    assert found.sensitivity == pytest.approx(2 / 3)
    healthy = SegmenterScores.of([evaluate_case("b", np.minimum(truth, 1), np.minimum(truth, 1), grid)])
    assert (healthy.small_sensitivity, healthy.sensitivity, healthy.tumor_dsc) == (None, None, None)
    assert segmenters.mean_and_spread([healthy, found], "small_sensitivity", digits=1) == "0.5"
    assert segmenters.mean_and_spread([healthy], "small_sensitivity") is None
