"""The entry on transfer: which jobs wait for phantoms, and the tables of the papers from records."""

import pytest

from studies.evidence.transfer import ORGANS, TRANSFER, write_paper_tables
from tests.studies.evidence.build import graph_of, record, scan


@pytest.mark.slow
def test_all_waits_for_the_phantoms(tmp_path):
    graph = graph_of(tmp_path, TRANSFER)
    free = [node.kind for node in graph.nodes.values() if not node.lacks]
    assert free == ["phantom"] * 4
    records = [node for node in graph.nodes.values() if node.kind == "record"]
    assert len(records) == 3 * 3 * 3 * 3
    assert {node.lacks for node in records} == {"its phantoms are made first"}
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
