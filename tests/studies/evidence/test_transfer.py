"""The entry on transfer: which jobs wait for phantoms, and the tables of the papers from records."""

from dataclasses import replace

import pytest

from difftumor.datasets.cases import read_cases
from difftumor.datasets.phantom.case import PhantomConfig
from difftumor.datasets.phantom.cohort import write_cohort
from studies.evidence.transfer import ORGANS, TRANSFER, phantom_cases, write_paper_tables
from tests.studies.evidence.build import graph_of, record, scan


def test_the_cases_of_phantoms_are_known_before_they_are_made(tmp_path):
    write_cohort(
        tmp_path, cases=2, organs=["liver"], seed=130, config=PhantomConfig(shape=(48, 48, 48)), overwrite=True
    )
    made, known = read_cases(tmp_path), phantom_cases(tmp_path, 2, 130)
    assert tuple(replace(case, tumor_organs=None) for case in made.cases) == known.cases
    assert made.label_names == known.label_names


@pytest.mark.slow
def test_cells_are_known_before_their_phantoms_are_made_and_wherever_they_are(tmp_path):
    graph = graph_of(tmp_path / "a", TRANSFER)
    assert not [node.lacks for node in graph.nodes.values() if node.lacks]
    behind = {node.id for node in graph.nodes.values() if node.kind == "phantom"}
    for node in graph.nodes.values():
        assert node.id in behind or behind & {need.id for need in node.needs} or node.kind == "record", node.id
    assert list(graph_of(tmp_path / "b", TRANSFER).nodes) == list(graph.nodes)
    records = [node for node in graph.nodes.values() if node.kind == "record"]
    assert len(records) == 3 * 3 * 3 * 3
    assert not [node for node in graph.nodes.values() if node.kind == "evaluate"]
    assert all("--probabilities" in node.words for node in graph.nodes.values() if node.kind == "predict")


@pytest.mark.slow
def test_the_tables_of_the_papers_are_made_of_records(tmp_path):
    scans = [scan(name, 1, (0, 1), (0, 0), dsc=0.5) for name in "abcd"]
    records = [record(kind, 0, scans if kind == "diffusion" else scans[:3]) for kind in ("real", "diffusion")]
    for each in records:
        cell = {"backbone": "unet", "source": "liver", "target": "kidney", **each.cell}
        object.__setattr__(each, "cell", cell)
    page = write_paper_tables(records, tmp_path)
    assert page.is_file()
    assert "intersection over union is at least 0.1" in (tmp_path / "transfer.json").read_text()
    assert "2 trainings of 27" in (tmp_path / "tables.md").read_text()
    missing = (tmp_path / "missing.csv").read_text().splitlines()
    assert len(missing) == 1 + len(ORGANS) ** 2 * 3 - 2
