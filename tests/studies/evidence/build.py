"""Small queues and records for tests."""

from studies.evidence.graph import EvidenceGraph, QueueEntry
from studies.evidence.records import CellRecord, CellScan, FoundTumors
from studies.jobs.graph import Node

ABOUT = {
    "checkout": {"commit": "0" * 40, "changes": "", "dirty": False}, "machine": "abacus",
    "models": [{"role": "segmenter", "seconds": 1800}], "trained_on_test": {"segmenter": 0}, "seconds": {},
}  # fmt: skip


def job(graph, name, *needs, gpu=True, module="tests.studies.jobs.leave", words=None):
    """Add a job that leaves a file, or fails if its folder's name has "fail" in it."""
    output = graph.folder / name
    words = (str(output), *(str(need.output) for need in needs)) if words is None else words
    node = Node(
        name=name, kind="leave", module=module, words=words, key=name.ljust(64, "0"), output=output,
        results=("result",), needs=needs, config={}, gpu=gpu,
    )  # fmt: skip
    graph.nodes[node.id] = node
    return node


def entry(name, declare, comparisons=(("made", "real"),)):
    """Return an entry of the queue."""
    titles = {"real": "real tumors", "made": "made tumors"}
    return QueueEntry(
        name=name, question=f"What does {name} do?", declare=declare, titles=titles, comparisons=comparisons
    )


def graph_of(folder, *entries):
    """Return the graph of entries."""
    return EvidenceGraph(entries, folder, records=folder / "records" / "small", size="small")


def found(froc_found, froc_false):
    """Return what was found of a scan at falling thresholds; the last is that of the label map."""
    counts = {"found": froc_found[-1], "early": 0, "false": froc_false[-1]}
    return FoundTumors(**counts, froc_found=tuple(froc_found), froc_false=tuple(froc_false))


def scan(case, tumors, froc_found, froc_false, dsc=None, overlap=None):
    """Return a scan; any overlap finds the same unless it is given."""
    return CellScan(
        case=case, patient=case, tumors=tumors, early=tumors, tumor_dsc=dsc, tumor_nsd=dsc, organ_dsc=None,
        iou=found(froc_found, froc_false), overlap=found(*(overlap or (froc_found, froc_false))),
    )  # fmt: skip


def record(trained_on, seed, scans, **about):
    """Return a record."""
    return CellRecord(
        entry="first", size="small", cell={"trained_on": trained_on, "seed": seed}, key="a" * 64,
        about={**ABOUT, **about}, thresholds=(0.9, 0.5), scans=tuple(scans),
    )  # fmt: skip
