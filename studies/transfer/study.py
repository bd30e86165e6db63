"""Tumors learned in one organ, made in another, found there: ``python -m studies.transfer run data.liver=PATH …``.

Cross-organ transfer (DiffTumor, Tables 2 to 7, Figures 5 and 10). For every fold, an autoencoder, then diffusion models
of each source's tumors, then segmenters in each target, which predict the target's held-out patients and are evaluated.
Where source and target differ, segmenters are trained on the target's healthy scans with made tumors only, or, for real
tumors, in the source itself. ``configs/transfer.yaml`` has the options; those of a stage have its name before them
(``diffusion.training.steps=1000``), and those for one organ that of the organ too
(``segmentation.liver.training.epochs=500``).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from studies.jobs.study import Study
from studies.transfer.jobs import TransferGraph
from studies.transfer.options import read_words


def declare(arguments: argparse.Namespace) -> TransferGraph:
    """Return the jobs of the study."""
    return TransferGraph(*read_words(arguments.options), arguments.out, arguments.cluster)


def write_tables(arguments: argparse.Namespace, graph: TransferGraph) -> Path:
    """Write the tables of what is done so far, and return the page."""
    # Here, because it draws: plans are made in seconds.
    from difftumor.evaluation.transfer.results import write_transfer_results

    done = {cell: node.output if node.is_done() else None for cell, node in graph.cells.items()}
    return write_transfer_results(done, arguments.out, command=arguments.command)


STUDY = Study("transfer", __doc__, declare, write_tables, words="options, as in configs/transfer.yaml")
main = STUDY.main
