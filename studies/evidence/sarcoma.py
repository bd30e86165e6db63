"""Real patients: few annotated sarcomas, alone and with made tumors, paired by patient over four folds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from difftumor.cli.many import SUMMARY_FILE
from difftumor.datasets.cases import Case, folds
from studies.evidence.graph import QUIET, EvidenceGraph, QueueEntry, Size, values_of
from studies.evidence.sarcoma_jobs import FOLD, MADE, SLABS, TEST, TRAINING
from studies.jobs.graph import Node, Value
from studies.sarcoma import FULL, SMALL
from studies.sarcoma_data import BODY
from studies.sarcoma_segmentation import SMALL as SEGMENTER_SMALL
from studies.tumor_sources import SOURCES

FOLDS, ROUNDS = 4, 2
# Fifty steps, as the model has them, take more than a minute of a CPU for a large tumor.
CPU_STEPS = ("--steps", "10")
# Training patients of a fold of 16 patients, and slabs of their scans; of one fold there are 21.
PATIENTS, HOSTS = 12, 20
KINDS: Mapping[str, tuple[str, ...]] = {
    "real": ("real tumors", *SOURCES["real"][1:]),
    "real_copied": ("real and copied", *SOURCES["mixed_copy_paste"][1:]),
    "real_handcrafted": ("real and hand-crafted", *SOURCES["mixed_handcrafted"][1:]),
    "real_diffusion_before": ("real and diffusion made before", *SOURCES["mixed"][1:]),
}


@dataclass(frozen=True, kw_only=True)
class SarcomaSize:
    """How large the entry is.

    Args:
        folds: Which of the folds.
        seeds: Of segmenters.
        steps: Of segmenters.
        stages: Options of stages 1 and 2, of both, and of each.
        more: Further options of each.
        segmenter: Options of stage 3.
    """

    folds: tuple[int, ...] = tuple(range(FOLDS))
    seeds: int = 3
    steps: int
    stages: Mapping[str, tuple[str, ...]]
    more: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    segmenter: tuple[str, ...]


_SMALL_SEGMENTER = (
    "experiment=[recommended,demo]", *SEGMENTER_SMALL[1:], "data.spacing_mm=[1.5,1.5,3]", "data.crop=[64,64,12]"
)  # fmt: skip
_TRIAL = ("training.steps=2", "training.steps_per_epoch=2", "validation.overlap=0")
SIZES: Mapping[Size, SarcomaSize] = {
    "small": SarcomaSize(steps=2100, stages=SMALL, segmenter=_SMALL_SEGMENTER),
    "full": SarcomaSize(
        steps=40000,
        stages={**FULL, "both": (*FULL["both"], "trainer=gpu")},
        segmenter=(
            "experiment=recommended", "trainer=gpu", "synthesis.sizes.early=0.0", "synthesis.placement=uniform",
            "data.crop=[96,96,32]",
        ),
    ),
    "trial": SarcomaSize(
        folds=(0,), seeds=1, steps=8, stages=SMALL, segmenter=_SMALL_SEGMENTER,
        more={
            "autoencoder": (*_TRIAL, "validation.scans=1", "pictures.every_n_epochs=0"),
            "diffusion": (*_TRIAL[:2], "latents.crops=2", "validation.crops=1"),
        },
    ),
}  # fmt: skip


def declare(graph: EvidenceGraph) -> None:
    """Add the jobs of the entry."""
    size, source = SIZES[graph.size], graph.sarcoma
    lacks = "" if source is not None else "--sarcoma is not given"
    files = [name.format(fold) for fold in range(FOLDS) for name in (FOLD, TRAINING, SLABS, TEST)]
    lists = graph.command(
        "lists", "sarcoma", ["--data", source or Path("sarcoma"), "--folds", str(FOLDS)], results=files,
        module="studies.evidence.sarcoma_jobs", lacks=lacks,
    )  # fmt: skip
    patients = [] if source is None else sorted(path.parent.name for path in source.glob("*/tumor.nii.gz"))
    cases = [Case(patient, Path(patient)) for patient in patients]
    for fold in size.folds:
        tests = [case.id for case in folds(cases, count=FOLDS, fold=fold, seed=0)[1]] if cases else []
        diffusion = _diffusion(graph, lists, fold)
        few = () if graph.size == "full" else CPU_STEPS
        made = graph.command(
            "make",
            f"sarcoma_made_before_fold{fold}",
            ["--cases", lists.part(SLABS.format(fold)), "--model", diffusion, "--rounds", str(ROUNDS), *few],
            results=(SUMMARY_FILE, MADE),
            module="studies.evidence.sarcoma_jobs",
            neutral=("--device", graph.device),
            replacing=("--overwrite",),
            gpu=True,
        )
        test = lists.part(TEST.format(fold))
        for seed in range(size.seeds):
            for kind in KINDS:
                model = _segmenter(graph, kind, fold, seed, lists=lists, diffusion=diffusion, made=made)
                predictions = graph.predicted(model, test, tests, overlap=0.25)
                cell: dict[str, str | int] = {"trained_on": kind, "fold": fold, "seed": seed}
                graph.record(cell, model=model, predictions=predictions, labels=test)


def _diffusion(graph: EvidenceGraph, lists: Node, fold: int) -> Node:
    """Return the diffusion model of a fold's training patients, behind it an autoencoder of the same."""
    size = SIZES[graph.size]
    words = {stage: (*size.stages["both"], *size.stages[stage], *size.more.get(stage, ()), *QUIET)
             for stage in ("autoencoder", "diffusion")}  # fmt: skip
    root: Value = lists.part(FOLD.format(fold))
    autoencoder = graph.stage(
        "autoencoder", f"sarcoma_autoencoder_fold{fold}", words["autoencoder"], {"data.root": root}
    )
    values: dict[str, Value] = {
        "data.root": root, "autoencoder.artifact": autoencoder, "validation.synthesize_every_n_epochs": 0,
        "validation.hosts": 0, "latents.cache": str(graph.folder / f"latents/sarcoma{fold}"),
    }  # fmt: skip
    return graph.stage(
        "diffusion", f"sarcoma_diffusion_fold{fold}", [*BODY, "tumor_stage=late", *words["diffusion"]], values
    )


def _segmenter(
    graph: EvidenceGraph, kind: str, fold: int, seed: int, *, lists: Node, diffusion: Node, made: Node
) -> Node:
    size, with_model = SIZES[graph.size], "diffusion" in kind
    values: dict[str, Value] = {
        "data.root": lists.part(TRAINING.format(fold)),
        "data.healthy_root": None if kind == "real" else lists.part(SLABS.format(fold)),
        "synthesis.early_model": None,
        "synthesis.late_model": diffusion if with_model else None,
        "synthesis.offline": made if with_model else None,
        **values_of(KINDS[kind][1:]),
    }
    hosts = 0 if kind == "real" else HOSTS * (ROUNDS if with_model else 1)
    return graph.segmenter(
        f"sarcoma_{kind}_fold{fold}_{seed}", [*BODY, *size.segmenter, *QUIET], values, seed=seed, steps=size.steps,
        cases=PATIENTS + hosts,
    )  # fmt: skip


REAL_PATIENTS = QueueEntry(
    name="real_patients",
    question="Do made tumors add to the annotated tumors of real patients?",
    declare=declare,
    titles={kind: title for kind, (title, *_) in KINDS.items()},
    comparisons=(
        ("real_diffusion_before", "real"), ("real_diffusion_before", "real_copied"),
        ("real_diffusion_before", "real_handcrafted"), ("real_handcrafted", "real"), ("real_copied", "real"),
    ),
)  # fmt: skip
