"""Who teaches what: segmenters that differ in their tumors alone, on phantoms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from difftumor.cli.many import SUMMARY_FILE
from studies.evidence.graph import QUIET, EvidenceGraph, QueueEntry, Size, values_of
from studies.jobs.graph import Node, Value
from studies.tumor_sources import SOURCES

RADIUS_MM = "4,10"  # early tumors: their diffusion model needs four timesteps
# With rims as soft as those of tumors on the fly are on average. No quality gate: a scan of which it lets no tumor pass
# would be missing.
MADE_BEFORE = ("--size", "early", "--count", "3", "--seed", "1", "--blur-share", "0.125")


@dataclass(frozen=True, kw_only=True)
class WhoTeachesSize:
    """How large the entry is.

    Args:
        shape: Voxels of the phantoms along each axis, of 320 mm.
        few: Annotated scans, each with one to three tumors; a quarter tells when stage 2 has learned enough.
        healthy: Scans that tumors are made in, and that the autoencoder learns.
        test: Fresh scans, a tenth of them healthy.
        seeds: Of segmenters.
        steps: Of segmenters.
        autoencoder: Options of stage 1.
        diffusion: Options of stage 2.
        segmenter: Options of stage 3.
    """

    shape: str
    few: int
    healthy: int
    test: int
    seeds: int
    steps: int
    autoencoder: tuple[str, ...]
    diffusion: tuple[str, ...]
    segmenter: tuple[str, ...]


DEMO = ("experiment=demo", "trainer=cpu")
SIZES: Mapping[Size, WhoTeachesSize] = {
    "small": WhoTeachesSize(
        shape="108", few=8, healthy=16, test=84, seeds=3, steps=1600,
        autoencoder=(*DEMO, "training.steps=1500"),
        diffusion=(
            *DEMO, "training.steps=8000", "training.steps_per_epoch=100", "training.patience=20", "ema.decay=0.995",
            "validation.crops=32", "folds.count=4",
        ),
        segmenter=("experiment=[recommended,demo]", "trainer=cpu"),
    ),
    "full": WhoTeachesSize(
        shape="320", few=16, healthy=64, test=200, seeds=5, steps=40000,
        autoencoder=("experiment=published", "trainer=gpu"),
        diffusion=("trainer=gpu", "training.patience=30", "folds.count=4"),
        segmenter=("experiment=recommended", "trainer=gpu"),
    ),
    "trial": WhoTeachesSize(
        shape="108", few=4, healthy=5, test=3, seeds=1, steps=8,
        autoencoder=(*DEMO, "training.steps=50"),
        diffusion=(
            *DEMO, "training.steps=60", "training.steps_per_epoch=10", "training.patience=3", "validation.crops=2",
            "folds.count=4",
        ),
        segmenter=("experiment=[recommended,demo]", "trainer=cpu"),
    ),
}  # fmt: skip

# What segmenters are trained on: what the table calls it, and its options of stage 3.
KINDS: Mapping[str, tuple[str, ...]] = {
    "none": ("healthy scans alone", "tumors=handcrafted", "synthesis.probability=0"),
    "copied": SOURCES["copy_paste"],
    "handcrafted": SOURCES["handcrafted"],
    "diffusion": SOURCES["diffusion"],
    "diffusion_before": ("diffusion tumors made before", *SOURCES["diffusion"][1:]),
    "real": SOURCES["real"],
    "real_none": SOURCES["none"],
    "real_copied": SOURCES["mixed_copy_paste"],
    "real_handcrafted": SOURCES["mixed_handcrafted"],
    "real_diffusion": SOURCES["mixed"],
    "real_diffusion_before": ("few real and diffusion made before", *SOURCES["mixed"][1:]),
}
COMPARISONS = (
    # Does a tumor source teach anything by itself, and as much as annotated tumors?
    ("handcrafted", "none"), ("diffusion", "none"), ("diffusion", "handcrafted"), ("diffusion_before", "handcrafted"),
    ("diffusion", "real"), ("handcrafted", "real"),
    # Does it add to annotated tumors more than healthy scans, copies and hand-crafted tumors do?
    ("real_diffusion", "real"), ("real_diffusion", "real_none"), ("real_diffusion", "real_copied"),
    ("real_diffusion", "real_handcrafted"), ("real_diffusion_before", "real_none"), ("real_handcrafted", "real_none"),
)  # fmt: skip


def declare(graph: EvidenceGraph) -> None:
    """Add the jobs of the entry."""
    size = SIZES[graph.size]

    def cohort(name: str, cases: int, seed: int, healthy: float) -> Node:
        return graph.phantoms(
            f"liver_{name}", cases=cases, seed=seed, healthy=healthy, organs="liver", shape=size.shape,
            radius_mm=RADIUS_MM,
        )  # fmt: skip

    few, healthy = cohort("few", size.few, 120, 0), cohort("healthy", size.healthy, 121, 1)
    test = cohort("test", size.test, 122, 0.1)
    autoencoder = graph.stage("autoencoder", "autoencoder_liver", [*size.autoencoder, *QUIET], {"data.root": healthy})
    learned: dict[str, Value] = {
        "data.root": few, "fold": 0, "autoencoder.artifact": autoencoder, "validation.synthesize_every_n_epochs": 0
    }  # fmt: skip
    diffusion = graph.stage("diffusion", "diffusion_liver_early", ["organ=liver", *size.diffusion, *QUIET], learned)
    cases = [f"phantom_{number:03d}" for number in range(size.healthy)]
    made = graph.command(
        "synthesize",
        "liver_made_before",
        ["--cases", healthy, "--organ", "liver", *MADE_BEFORE, "--model", diffusion.best],
        results=(SUMMARY_FILE, *(f"{case}/record.json" for case in cases)),
        neutral=("--device", graph.device),
        replacing=("--overwrite",),
        gpu=True,
    )
    for seed in range(size.seeds):
        for kind in KINDS:
            model = _segmenter(graph, kind, seed, few=few, healthy=healthy, diffusion=diffusion, made=made)
            tests = [f"phantom_{number:03d}" for number in range(size.test)]
            predictions = graph.predicted(model, test, tests, overlap=0.25)
            graph.record({"trained_on": kind, "seed": seed}, model=model, predictions=predictions, labels=test)


def _segmenter(
    graph: EvidenceGraph, kind: str, seed: int, *, few: Node, healthy: Node, diffusion: Node, made: Node
) -> Node:
    size = SIZES[graph.size]
    annotated, hosts = kind.startswith("real") or kind == "copied", kind != "real"
    with_model = "diffusion" in kind
    values: dict[str, Value] = {
        "data.root": few if annotated else None,
        "data.healthy_root": healthy if hosts else None,
        "synthesis.early_model": diffusion.best if with_model else None,
        "synthesis.late_model": None,
        "synthesis.sizes.medium": 0.0,
        "synthesis.sizes.large": 0.0,
    }
    if kind.endswith("before"):
        values["synthesis.offline"] = made
    values |= values_of(KINDS[kind][1:])
    options = ["organ=liver", *size.segmenter, *QUIET]
    trained_on = size.few * kind.startswith("real") + size.healthy * hosts
    return graph.segmenter(f"liver_{kind}_{seed}", options, values, seed=seed, steps=size.steps, cases=trained_on)


WHO_TEACHES = QueueEntry(
    name="who_teaches_what",
    question="What do segmenters learn from made tumors, alone and beside a few annotated ones?",
    declare=declare,
    titles={kind: title for kind, (title, *_) in KINDS.items()},
    comparisons=COMPARISONS,
)
