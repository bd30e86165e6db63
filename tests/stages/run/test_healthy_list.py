"""The list of select-healthy is what stage 3 makes tumors in."""

import pytest

from difftumor.scans.organs import ORGANS
from stages.run.case_lists import read_root, sort_and_say
from stages.segmentation import train as segmentation
from tests.conftest import run
from tests.stages.builds import options_of


@pytest.fixture
def healthy_list(tumor_cohort, tmp_path):
    """Return a function that selects the cohort's healthy scans; its livers of 90 ml touch no edge."""

    def select(*more: str):
        given = ("--cts", tumor_cohort / "imagesTr", "--organ", "liver", "--out", tmp_path / "list.json")
        options = ("--min-volume-ml", "80", *more)
        assert run("select-healthy", tumor_cohort / "labelsTr", *given, *options) == 0
        return tmp_path / "list.json"

    return select


def test_stage_3_takes_the_scans_for_healthy(healthy_list, tiny_segmentation):
    file = healthy_list()
    found = sort_and_say(read_root(file), ORGANS["liver"], workers=1)
    assert [case.id for case in found.healthy] == ["healthy0", "healthy1", "silent_healthy"]
    assert not found.tumor
    assert not found.left_out
    config = tiny_segmentation(f"data.healthy_root={file}", "tumors=diffusion")
    data = segmentation.build(options_of(config)).data
    assert {case for case in data.train if data.reader.origins[case].healthy} >= set(found.healthy)


def test_scans_with_tolerated_tumor_voxels_are_healthy_too(healthy_list, tiny_segmentation):
    file = healthy_list("--max-tumor-mm3", "800")  # early tumors have 729 mm³
    found = sort_and_say(read_root(file), ORGANS["liver"], workers=1)
    assert [case.id for case in found.healthy] == [
        "early0", "early1", "early2", "healthy0", "healthy1", "silent_healthy",
    ]  # fmt: skip
    config = tiny_segmentation(f"data.healthy_root={file}", "tumors=diffusion")
    data = segmentation.build(options_of(config)).data
    item = data.load(next(case for case in found.healthy if case.id == "early0"))
    assert set(item["labels"].unique().tolist()) == {0, 1}
