"""Which tumors to train a segmenter of real sarcomas on: ``python -m studies.sarcoma_segmentation run --study FOLDER``.

Takes patients, folds and the diffusion model of all tumors from the folder of ``studies.sarcoma``, and runs
``studies.tumor_sources`` on them: trained on the training patients, tested on the held-out ones. No scan of this data
set is healthy, but all extend 5 cm beyond the tumor: the slices below and above it host synthetic tumors.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np

from difftumor.datasets.cases import Case, CaseList, read_cases, split_by_ids, write_case_list
from difftumor.errors import CaseListError, ConfigError
from difftumor.files.writing import folder_written_whole
from difftumor.models.artifact_config import read_config
from difftumor.scans.organs import TUMOR
from studies.jobs.segmenters import SegmenterGraph, segmenter_options
from studies.jobs.study import Study
from studies.sarcoma_data import BODY
from studies.tumor_sources import add_sources, write_table
from studies.tumor_sources import declare as declare_sources

FEW, HEALTHY, TEST = "few.json", "healthy.json", "test.json"
# Least height of a slab of tumor-free slices; that of the crops, so that none is padded with air.
SLAB_MM = 36.0
# Slices closer than this to a slice with tumor do not host synthetic ones.
MARGIN_MM = 10.0
# Crop sizes are multiples of this.
MULTIPLE = 4
# For two cores and an hour: the demo's network, and tumors in every host, which short trainings need (docs/results.md).
SMALL = (
    "experiment=demo", "trainer=cpu", "synthesis.early_model=null", "synthesis.probability=1.0",
    "synthesis.sizes.early=0.0", "synthesis.sizes.medium=1.0", "synthesis.sizes.large=1.0",
    "synthesis.placement=uniform", "data.healthy_background=0.25",
)  # fmt: skip


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--study", type=Path, default=Path("runs/sarcoma"), help="folder of studies.sarcoma (runs/sarcoma)"
    )
    parser.add_argument("--model", type=Path, help="its diffusion model of all tumors, if it has left several")
    add_sources(parser, chosen=("real", "none", "mixed_copy_paste", "mixed"))


def declare(arguments: argparse.Namespace) -> SegmenterGraph:
    """Write the lists, and return the trainings of the chosen sources and their predictions.

    Raises:
        DiffTumorError: Patients or model are missing, or an option is wrong.
    """
    model = arguments.model or _model_of(arguments.study)
    seen = read_config(model).preprocessing
    spacing_mm = [float(step) for step in seen["spacing_mm"]]
    crop = [*seen["crop"][:2], max(MULTIPLE, int(SLAB_MM / spacing_mm[2]) // MULTIPLE * MULTIPLE)]
    lists = write_lists(arguments.study / "data", arguments.out / "data")
    options = [
        *BODY, *SMALL, f"data.root={lists / FEW}", f"data.healthy_root={lists / HEALTHY}",
        f"synthesis.late_model={model}", f"data.spacing_mm={spacing_mm}", f"data.crop={crop}", *arguments.options,
    ]  # fmt: skip
    return declare_sources(argparse.Namespace(**{**vars(arguments), "options": options, "test": lists / TEST}))


def _model_of(study: Path) -> Path:
    """Return the diffusion model of all tumors that a study of sarcomas has left."""
    found = sorted((study / "checkpoints").glob("all_tumors*"))
    if not found:
        raise ConfigError(f"{study} has no model of all tumors: run python -m studies.sarcoma run --out {study} first.")
    if len(found) > 1:
        raise ConfigError(
            f"{study} has {len(found)} models of all tumors: choose one with --model, such as {found[0]}."
        )
    return found[0]


def write_lists(data: Path, folder: Path) -> Path:
    """Write lists of the training patients, the held-out ones, and slabs of the training patients without tumor.

    Args:
        data: Folder that ``write_sarcoma`` has written.
        folder: Folder to make; kept if it holds the same patients.

    Returns:
        The folder.

    Raises:
        CaseListError: There are no patients, or no scan has enough slices beside the tumor.
        ConfigError: The folder holds other patients.
    """
    cases = read_cases(data)
    training, held_out = split_by_ids(cases.cases, cases.validation_ids)
    if (folder / FEW).is_file():
        if [case.id for case in read_cases(folder / FEW).cases] != [case.id for case in training]:
            raise ConfigError(
                f"{folder} holds other patients, on which the models beside it were trained: give another --out."
            )
        return folder
    with folder_written_whole(folder) as staging:
        slabs = tuple(slab for case in training for slab in write_slabs(case, staging))
        if not slabs:
            raise CaseListError(f"No scan of {data} has {SLAB_MM:g} mm of tumor-free slices: give other patients.")
        for file, part in ((FEW, training), (TEST, held_out), (HEALTHY, slabs)):
            listed = CaseList(tuple(part), cases.label_names, data)
            write_case_list(staging / file, listed, name=f"Soft-tissue sarcoma, {Path(file).stem}")
    return folder


def write_slabs(case: Case, folder: Path) -> Iterator[Case]:
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


STUDY = Study(
    "sarcoma_segmentation",
    __doc__,
    declare,
    write_table,
    partial(segmenter_options, more=_add_options, data=False),
    check=SegmenterGraph.check,
    words="options of stage 3, such as training.accumulate=2",
)
main = STUDY.main


if __name__ == "__main__":
    sys.exit(main())
