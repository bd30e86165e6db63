"""Which tumors to train a segmenter of real sarcomas on: ``python -m studies.sarcoma_segmentation --study FOLDER``.

Takes patients, folds and the diffusion model of all tumors from the folder of ``studies.sarcoma``, and runs
``studies.tumor_sources`` on them: trained on the training patients, tested on the held-out ones. No scan of this data
set is healthy, but all reach 5 cm beyond the tumor: the slices below and above it host synthetic tumors.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np

from difftumor.datasets.cases import Case, CaseList, read_cases, split_by_ids, write_case_list
from difftumor.errors import CaseListError, ConfigError
from difftumor.files import folder_written_whole
from difftumor.models.artifact_config import read_config
from difftumor.scans.organs import TUMOR
from studies.jobs.command import run_command
from studies.jobs.segmenters import study_parser
from studies.sarcoma_data import BODY
from studies.tumor_sources import add_sources
from studies.tumor_sources import run_study as compare_sources

FEW, HEALTHY, TEST = "few.json", "healthy.json", "test.json"
# A slab of tumor-free slices is of use from this height, which is that of the crops, so that none has air around.
SLAB_MM = 36.0
# Slices with their center nearer to that of a slice with tumor host no other.
MARGIN_MM = 10.0
# Crops are multiples of this.
MULTIPLE = 4
# For two cores and an hour: the demo's network, and tumors in every host, as short trainings need (docs/results.md).
SMALL = (
    "experiment=demo", "trainer=cpu", "synthesis.early_model=null", "synthesis.probability=1.0",
    "synthesis.sizes.early=0.0", "synthesis.sizes.medium=1.0", "synthesis.sizes.large=1.0",
    "synthesis.placement=uniform", "data.healthy_background=0.25",
)  # fmt: skip


def command_line() -> argparse.ArgumentParser:
    """Return what parses the command line."""
    parser = study_parser("sarcoma_segmentation", (__doc__ or "").splitlines()[0], data=False)
    parser.add_argument("--study", type=Path, default=Path("runs/sarcoma"), help="of studies.sarcoma (runs/sarcoma)")
    add_sources(parser, chosen=("real", "mixed"))
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study and return the exit status."""
    return run_command(command_line(), run_study, arguments)


def run_study(words: argparse.Namespace) -> Path:
    """Write the lists, train what is not trained yet, test, and write the results.

    Returns:
        The page.

    Raises:
        DiffTumorError: Patients or model are missing, an option is wrong, or a training has failed.
    """
    model = words.study / "checkpoints" / "all_tumors"
    if not model.is_dir():
        raise ConfigError(f"{model} is missing: run python -m studies.sarcoma --out {words.study} first.")
    seen = read_config(model).preprocessing
    spacing_mm = [float(step) for step in seen["spacing_mm"]]
    crop = [*seen["crop"][:2], max(MULTIPLE, int(SLAB_MM / spacing_mm[2]) // MULTIPLE * MULTIPLE)]
    lists = write_lists(words.study / "data", words.out / "data")
    options = [
        *BODY, *SMALL, f"data.root={lists / FEW}", f"data.healthy_root={lists / HEALTHY}",
        f"synthesis.late_model={model}", f"data.spacing_mm={spacing_mm}", f"data.crop={crop}", *words.options,
    ]  # fmt: skip
    return compare_sources(argparse.Namespace(**{**vars(words), "options": options, "test": lists / TEST}))


def write_lists(data: Path, folder: Path) -> Path:
    """Write lists of the training patients, the held-out ones, and slabs of the training patients without tumor.

    Args:
        data: What ``write_sarcoma`` has made.
        folder: Folder to make; left alone if it holds the same patients.

    Returns:
        The folder.

    Raises:
        CaseListError: There are no such patients, or no scan has slices enough beside the tumor.
        ConfigError: The folder holds other patients.
    """
    cases = read_cases(data)
    training, held_out = split_by_ids(cases.cases, cases.validation_ids)
    if (folder / FEW).is_file():
        if [case.id for case in read_cases(folder / FEW).cases] != [case.id for case in training]:
            raise ConfigError(
                f"{folder} holds other patients, on which models beside it were trained: give another --out."
            )
        return folder
    with folder_written_whole(folder) as staging:
        slabs = tuple(slab for case in training for slab in _write_slabs(case, staging))
        if not slabs:
            raise CaseListError(f"No scan of {data} has {SLAB_MM:g} mm of tumor-free slices: give other patients.")
        for file, part in ((FEW, training), (TEST, held_out), (HEALTHY, slabs)):
            listed = CaseList(tuple(part), cases.label_names, data)
            write_case_list(staging / file, listed, name=f"Soft-tissue sarcoma, {Path(file).stem}")
    return folder


def _write_slabs(case: Case, folder: Path) -> Iterator[Case]:
    """Write the slices below and above a tumor as scans of their own, with their labels."""
    assert case.labels is not None
    ct, labels = nib.load(case.image), nib.load(case.labels)
    with_tumor = np.flatnonzero((np.asarray(labels.dataobj) == TUMOR).any(axis=(0, 1)))
    step_mm = float(labels.header.get_zooms()[2])
    margin = int(np.ceil(MARGIN_MM / step_mm))
    parts = {"below": (0, with_tumor[0] - margin + 1), "above": (with_tumor[-1] + margin, labels.shape[2])}
    for name, (start, stop) in parts.items():
        if (stop - start) * step_mm < SLAB_MM:
            continue
        slab = f"{case.id}_{name}"
        files = folder / f"{slab}.nii.gz", folder / f"{slab}_labels.nii.gz"
        for image, file in zip((ct, labels), files, strict=True):
            nib.save(image.slicer[:, :, start:stop], file)
        yield replace(case, id=slab, image=files[0], labels=files[1], tumor_organs=())


if __name__ == "__main__":
    sys.exit(main())
