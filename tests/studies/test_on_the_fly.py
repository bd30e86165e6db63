"""The study of tumors on the fly: what it trains, and the table it leaves."""

import pytest

from difftumor.models.artifact_config import read_config
from studies.jobs.segmenters import SegmenterScores
from studies.on_the_fly import FACTORS, main, table_rows
from tests.conftest import read_rows
from tests.studies.test_timesteps import without_key
from tests.studies.test_tumor_sources import words


@pytest.mark.slow
def test_it_trains_every_combination_and_what_it_is_compared_with(folder, tmp_path, capfd, in_this_process):
    out = tmp_path / "study"
    assert main([*words(folder, out), "--seeds", "1", "--steps", "3"]) == 0
    assert capfd.readouterr().out.endswith(f"The report is at {out}/report.html\n")
    rows = read_rows(out / "on_the_fly.csv")
    assert [row["trained on"] for row in rows] == ["diffusion, on the fly"] * 8 + ["hand-crafted, on the fly"] * 2
    assert len({tuple(row[name] for name in FACTORS) for row in rows[:8]}) == 8
    configs = {without_key(path): read_config(path).training["config"] for path in (out / "checkpoints").iterdir()}
    assert len(configs) == 10
    first = configs["diffusion_on_the_fly_1e-5_half_organ_0"]
    assert (first["loss"]["smooth_nr"], first["synthesis"]["probability"], first["synthesis"]["center"]) == (
        1e-5,
        0.5,
        0,
    )
    last = configs["hand-crafted_on_the_fly_published_all_tumors_0"]
    assert (last["tumors"], last["loss"]["smooth_nr"]) == ("handcrafted", 0)
    assert (last["synthesis"]["probability"], last["synthesis"]["center"]) == (1, 0.5)


def test_the_table_has_the_levels_and_means():
    runs = [SegmenterScores(0.2, 0.9, 0.5, None, 1.0), SegmenterScores(0.4, 0.9, 0.7, None, 2.0)]
    (row,) = table_rows([("diffusion", ("1e-5", "all", "organ"))], [runs])
    assert {name: row[name] for name in FACTORS} == {
        "smoothing": "1e-5", "crops with tumors": "all", "crops around": "organ",
    }  # fmt: skip
    assert (row["trainings"], row["tumor DSC"]) == (2, "0.30 ± 0.14")
