"""Stage 2 on real tumors: ``python -m studies.sarcoma run --data PATH`` with the folder of the sarcoma patients.

Trains an autoencoder on the training patients of one fold, then a diffusion model on all their tumors and another on
one of them (DiffTumor, Figure 5), makes tumors in the host tissue of the held-out patients with both, and measures how
far they are from the held-out real tumors. Rerunning it resumes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from difftumor.evaluation.realism.figures import appearance_figure
from difftumor.models.artifact import describe_device, pick_device
from difftumor.models.artifact_config import read_config
from difftumor.reporting.pictures import axial_rows
from difftumor.reporting.plots import curves
from studies.jobs.comparison import READING, Comparison, JudgedGraph, compare, picture_rows, table_rows
from studies.jobs.graph import Value
from studies.jobs.results import Picture, write_results
from studies.jobs.study import Study, require_done
from studies.sarcoma_data import BODY, write_sarcoma

if TYPE_CHECKING:
    from stages.run.pictures import Curve

MODELS: Mapping[str, int | str] = {"all tumors": "all", "one tumor": 1}
# As published, at 1 mm; for a GPU.
FULL: Mapping[str, tuple[str, ...]] = {
    "both": ("data.cache_rate=1.0",),
    "autoencoder": ("validation.scans=4", "perceptual.weight=0"),
    "diffusion": ("validation.synthesize_every_n_epochs=10",),
}
# For two cores and two hours: coarse voxels, few codes, short trainings with higher learning rates, and discriminators
# with little weight, which few crops need (docs/results.md).
SMALL: Mapping[str, tuple[str, ...]] = {
    "both": (
        "trainer=cpu", "data.spacing_mm=[1.5,1.5,3]", "data.crop=[64,64,32]", "data.num_workers=0",
        "data.cache_rate=1.0", "trainer.log_every_n_steps=10", "training.steps_per_epoch=50",
    ),
    "autoencoder": (
        "data.batch_size=2", "trainer.validate_every_n_epochs=3", "validation.scans=4", "pictures.scans=4",
        "pictures.every_n_epochs=4", "network.codes=512", "codebook.decay=0.95", "optimizer.lr=5e-4",
        "discriminators.start_step=750", "loss_weights.slice_adversarial=0.1", "loss_weights.volume_adversarial=0.1",
        "loss_weights.feature_matching=0.4", "perceptual.weight=0", "training.steps=900", "optimizer.betas=[0.9,0.999]",
        "optimizer.clip_norm=null", "optimizer.milestones=[]", "codebook.updates_per_step=1",
        "augmentation.rotation_probability=0",
    ),
    "diffusion": (
        "data.batch_size=4", "network.multipliers=[1,2,4]", "optimizer.lr=5e-4", "ema.decay=0.99", "ema.start=200",
        "ema.every=1", "training.steps=1500", "training.accumulate=1", "data.foreground_ratio=20",
        "augmentation.rotation_probability=0", "latents.crops=50", "validation.synthesize_every_n_epochs=10",
    ),
}  # fmt: skip


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="folder of <patient>/ct.nii.gz and tumor.nii.gz")
    parser.add_argument(
        "--size", choices=("small", "full"), default="small", help="small: for a CPU; full: as published"
    )
    parser.add_argument("--fold", type=int, default=0, help="fold that is held out, from 0 (0)")
    parser.add_argument("--folds", type=int, default=4, help="number of folds (4)")
    parser.add_argument("--hosts", type=int, default=8, help="crops of held-out patients to host tumors (8)")
    parser.add_argument("--device", default="auto", help="where tumors are made: auto, cpu, cuda")
    for stage in ("autoencoder", "diffusion"):
        parser.add_argument(
            f"--{stage}",
            nargs="+",
            default=[],
            metavar="OPTION",
            help=f"further options of stages.{stage}, which override those of --size",
        )


class SarcomaGraph(JudgedGraph):
    """An autoencoder, a diffusion model of all tumors, and one of a single tumor.

    Args:
        arguments: Of the command line.

    Raises:
        DiffTumorError: Data are missing, or an option is wrong.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__(arguments.out, arguments.cluster)
        self.device = arguments.device
        preset = FULL if arguments.size == "full" else SMALL
        data = write_sarcoma(arguments.data, self.folder / "data", count=arguments.folds, fold=arguments.fold)
        root = f"data.root={data}"
        self.options = [
            *BODY, "tumor_stage=late", root, *preset["both"], *preset["diffusion"],
            f"latents.cache={self.folder}/latents", f"validation.hosts={arguments.hosts}", *arguments.diffusion,
        ]  # fmt: skip
        own = [root, *preset["both"], *preset["autoencoder"], *arguments.autoencoder]
        self.autoencoder = self.stage("autoencoder", "autoencoder", own, {})
        values: dict[str, Value] = {"autoencoder.artifact": self.autoencoder}
        self.models = {
            name: self.stage("diffusion", name.replace(" ", "_"), self.options, {**values, "data.max_tumors": most})
            for name, most in MODELS.items()
        }


def write_table(arguments: argparse.Namespace, graph: SarcomaGraph) -> Path:
    """Compare the models, write the results, and return the page.

    Raises:
        DiffTumorError: A model is missing or cannot be used.
    """
    device = pick_device(arguments.device)
    require_done(graph)
    artifacts = {name: node.output for name, node in graph.models.items()}
    comparison = compare(artifacts, graph.unseen, device=device)
    return write_results(
        arguments.out,
        "sarcoma",
        title="Stage 2 on soft-tissue sarcomas",
        introduction=[
            f"Fold {arguments.fold} of {arguments.folds} by patient is held out of both stages. One model learned all "
            "tumors of the training patients, the other a single one. Both made tumors of the same masks in the tissue "
            "of the held-out patients.",
            READING,
        ],
        rows=table_rows(comparison),
        pictures=_pictures(
            comparison, {name: graph.folder / "runs/diffusion" / path.name for name, path in artifacts.items()}
        ),
        details={
            "command": arguments.command,
            "device": describe_device(device),
            **comparison.counts,
            "autoencoder": _measured(graph.autoencoder.output),
            **{name: _measured(artifact) for name, artifact in artifacts.items()},
        },
    )


def _pictures(comparison: Comparison, runs: Mapping[str, Path]) -> dict[str, Picture]:
    rows, centers = picture_rows(comparison, hosts=len(comparison.hosts))
    window_hu = (comparison.window.low_hu, comparison.window.high_hu)
    tumors = axial_rows(rows, centers=centers, spacing_mm=comparison.spacing_mm, window_hu=window_hu, column_inches=2.2)
    references = {each.name: each.appearances for each in comparison.references}
    losses = curves(_losses(runs), y_label="L1 of the noise", smoothing=0.8)
    return {
        "tumors": Picture(tumors, "Tumors in held-out patients; the mask is outlined on the left."),
        "appearance": Picture(appearance_figure({**comparison.sets, **references}), "How the tumors look."),
        "losses": Picture(losses, "Losses while training and held out."),
    }


def _losses(runs: Mapping[str, Path]) -> dict[str, Curve]:
    from stages.run.pictures import read_curves

    return {
        f"{name}, {tag.split('/')[0]}": curve
        for name, run in runs.items()
        for tag, curve in read_curves(run, ("training/loss", "validation/loss")).items()
    }


def _measured(artifact: Path) -> str:
    """Return how long a model was trained and the metrics of its last validation."""
    config = read_config(artifact)
    metrics = (f"{name.removeprefix('validation/')} {value:.3g}" for name, value in config.metrics.items())
    return f"{config.training['steps']} steps; " + ", ".join(metrics)


STUDY = Study("sarcoma", __doc__, SarcomaGraph, write_table, _add_options, check=SarcomaGraph.check, measures=True)
main = STUDY.main


if __name__ == "__main__":
    sys.exit(main())
