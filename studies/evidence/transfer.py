"""Transfer: tumors learned in one organ, made in another, found there, on phantoms whose late tumors differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from difftumor.datasets.cases import Case, CaseList
from difftumor.datasets.phantom.volume import LABEL_NAMES
from difftumor.evaluation.metrics.detection import Matching
from difftumor.evaluation.transfer.cells import TransferCell
from studies.evidence.graph import EvidenceGraph, QueueEntry, Size
from studies.evidence.records import MINIMUM_IOU, CellRecord, CellScan
from studies.transfer.jobs import MadeData, TransferGraph
from studies.transfer.options import ORGANS, read_words

KINDS = {
    "real": "real tumors of the source",
    "handcrafted": "hand-crafted (Hu et al.)",
    "diffusion": "diffusion tumors",
}
# One half of the patients is learned from, the other one is the test.
_FOLDS = ("fold_count=2", "folds=[0]")
_LISTS = ("sources=[liver,pancreas,kidney]", "targets=[liver,pancreas,kidney]", f"tumors=[{','.join(KINDS)}]")
_CPU = (
    "autoencoder.experiment=demo", "autoencoder.trainer=cpu", "diffusion.experiment=demo", "diffusion.trainer=cpu",
    # Late tumors need more timesteps than early ones; two hundred are too many for tumors on the fly on a CPU.
    "diffusion.diffusion.timesteps=8", "diffusion.diffusion.sampler.kind=ddpm",
    "diffusion.diffusion.sampler.steps=null", "diffusion.folds.count=2", "diffusion.ema.decay=0.995",
    "diffusion.validation.synthesize_every_n_epochs=0",
    "segmentation.experiment=[recommended,demo]", "segmentation.trainer=cpu", "segmentation.synthesis.sizes.early=0.6",
    "segmentation.synthesis.sizes.medium=0.4", "segmentation.synthesis.sizes.large=0", "prediction.overlap=0.25",
    "backbones=[unet]",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TransferSize:
    """How large the entry is.

    Args:
        shape: Voxels of the phantoms along each axis, of 320 mm.
        annotated: Scans with tumors of each organ, half of them for testing.
        healthy: Scans that tumors are made in.
        seeds: Of segmenters.
        words: Options of the study of transfer.
    """

    shape: str
    annotated: int
    healthy: int
    seeds: int
    words: tuple[str, ...]


SIZES: Mapping[Size, TransferSize] = {
    # 800 steps of every segmenter, whatever the number of its scans: 50 epochs of the first 16 batches.
    "small": TransferSize(
        shape="108", annotated=64, healthy=32, seeds=3,
        words=(
            *_CPU, "autoencoder.training.steps=1500", "diffusion.training.steps=3000",
            "segmentation.training.epochs=50", "segmentation.training.warmup_epochs=2",
            "segmentation.trainer.limit_train_batches=16",
        ),
    ),
    "full": TransferSize(
        shape="320", annotated=200, healthy=100, seeds=3,
        words=(
            "backbones=[unet,nnunet,swinunetr]", "autoencoder.trainer=gpu", "diffusion.trainer=gpu",
            "segmentation.experiment=recommended", "segmentation.trainer=gpu",
        ),
    ),
    "trial": TransferSize(
        shape="108", annotated=4, healthy=2, seeds=1,
        words=(
            *_CPU, "autoencoder.training.steps=25", "diffusion.training.steps=50", "segmentation.training.epochs=2",
            "segmentation.training.warmup_epochs=0",
        ),
    ),
}  # fmt: skip


def declare(graph: EvidenceGraph) -> None:
    """Add the jobs of the entry: phantoms, and all that the study of transfer does with them."""
    size = SIZES[graph.size]

    def cohort(name: str, cases: int, seed: int, organ: str, *more: str, healthy: float = 0) -> MadeData:
        node = graph.phantoms(
            f"transfer_{name}", cases=cases, seed=seed, organs=organ, shape=size.shape, radius_mm="4,20",
            healthy=healthy, more=more,
        )  # fmt: skip
        return MadeData(node, phantom_cases(node.output, cases, seed))

    cohorts = {
        f"data.{organ}": cohort(organ, size.annotated, 130 + number, organ, "--late-tumors", "distinct")
        for number, organ in enumerate(ORGANS)
    }
    hosts = cohort("healthy", size.healthy, 139, "liver", healthy=1)
    cohorts |= {f"healthy.{organ}": hosts for organ in ORGANS}
    data = [f"{option}={made.node.output}" for option, made in cohorts.items()]
    seeds = f"seeds=[{','.join(map(str, range(size.seeds)))}]"
    quiet = [f"{stage}.trainer.progress_bar=false" for stage in ("autoencoder", "diffusion", "segmentation")]
    words = [*_LISTS, *_FOLDS, seeds, *size.words, *quiet, "prediction.probabilities=true", *data]
    folder, known = graph.folder / "transfer" / graph.size, {made.node.output: made for made in cohorts.values()}
    study = TransferGraph(*read_words(words), folder, graph.cluster, known)
    graph.merge(study, without="evaluate")
    for cell, evaluated in study.cells.items():
        predictions, *_ = evaluated.needs
        *_, model = predictions.needs
        _, _, test, *_ = predictions.words
        name: dict[str, str | int] = {
            "backbone": cell.backbone, "source": cell.source, "target": cell.target, "trained_on": cell.tumors,
            "seed": cell.seed,
        }  # fmt: skip
        elsewhere = cell.tumors == "real" and cell.source != cell.target
        graph.record(
            name, model=model, predictions=predictions, labels=Path(test),
            organ=cell.target if elsewhere else None,
        )  # fmt: skip


def phantom_cases(folder: Path, count: int, seed: int) -> CaseList:
    """Return the cases of a cohort of phantoms, which may not have been made; their label maps say who has tumors."""
    cases = []
    for number in range(count):
        name = f"phantom_{number:03d}"
        image, labels = (folder / part / f"{name}.nii.gz" for part in ("imagesTr", "labelsTr"))
        cases.append(Case(name, image, labels, f"phantom_{seed}_{number:03d}"))
    return CaseList(tuple(cases), LABEL_NAMES, folder)


def write_paper_tables(records: Sequence[CellRecord], folder: Path) -> Path:
    """Write the tables and heatmaps of the papers (found at an IoU of at least 0.1), and return their page.

    Args:
        records: Of cells; those of other organs, tumors and seeds are shown as missing.
        folder: Where to.
    """
    # Here, because it draws: plans are made in seconds.
    from difftumor.evaluation.metrics.overlap import TOLERANCE_MM
    from difftumor.evaluation.transfer.cells import TestedScan, grid_of
    from difftumor.evaluation.transfer.results import write_grid

    def tested(scan: CellScan) -> TestedScan:
        scores = {"dsc": scan.tumor_dsc, "nsd": scan.tumor_nsd}
        return TestedScan(
            case=scan.case,
            patient=scan.patient,
            fold=0,
            tumors={"all": float(scan.tumors), "early": float(scan.early)},
            found={"all": float(scan.iou.found), "early": float(scan.iou.early)},
            scores={name: value for name, value in scores.items() if value is not None},
        )

    known = {tuple(record.cell.values()): [tested(scan) for scan in record.scans] for record in records}
    backbones, seeds = (sorted({record.cell[field] for record in records}) for field in ("backbone", "seed"))
    cells = {
        TransferCell(
            source=source, target=target, backbone=str(backbone), tumors=kind, fold=0, seed=int(seed)
        ): known.get((backbone, source, target, kind, seed))
        for backbone, source, target, kind, seed in product(backbones, ORGANS, ORGANS, KINDS, seeds)
    }  # fmt: skip
    settings = {"tolerance_mm": TOLERANCE_MM, "matching": str(Matching(rule="iou", minimum_iou=MINIMUM_IOU))}
    return write_grid(grid_of(cells, settings), folder)


TRANSFER = QueueEntry(
    name="transfer",
    question="Are tumors that were learned in one organ, and made in another, found there?",
    declare=declare,
    titles=KINDS,
    groups=("backbone", "source", "target", "trained_on"),
    comparisons=(("diffusion", "real"), ("diffusion", "handcrafted")),
    further=write_paper_tables,
)
