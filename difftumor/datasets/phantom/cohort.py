"""A cohort of phantoms on disk: NIfTI files and the ``dataset.json`` of the Medical Segmentation Decathlon."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from difftumor import __version__
from difftumor.datasets.phantom.case import PhantomCase, PhantomConfig, check_organs, make_case
from difftumor.datasets.phantom.volume import LABEL_NAMES
from difftumor.errors import ConfigError
from difftumor.files.results import ResultFolder, is_json_with
from difftumor.files.writing import folder_written_whole

DATASET_FILE = "dataset.json"
COHORT_FOLDER = ResultFolder(what="phantom cohort", mark=DATASET_FILE, is_own=is_json_with("phantom"))


def write_cohort(
    out: Path | str,
    *,
    cases: int,
    organs: Sequence[str],
    seed: int,
    config: PhantomConfig | None = None,
    overwrite: bool = False,
    advance: Callable[[], None] | None = None,
) -> Path:
    """Write a cohort; it appears whole or not at all.

    Args:
        out: Folder to make: ``imagesTr/``, ``labelsTr/`` and ``dataset.json``.
        cases: How many cases.
        organs: Organs that get tumors.
        seed: Case i depends on (seed, i) alone: a larger cohort begins with the smaller one.
        config: Grid, noise and tumors; the defaults if None.
        overwrite: Replace an older phantom cohort at ``out``.
        advance: Called after each case, for a progress bar.

    Returns:
        The path of ``dataset.json``.

    Raises:
        ConfigError: A value is out of range, or ``out`` holds something already.
        SynthesisError: An organ is not in the field of view.
    """
    config = config or PhantomConfig()
    folder = Path(out)
    if cases < 1:
        raise ConfigError(f"cases is {cases}: give 1 or more.")
    if not organs:
        raise ConfigError("organs is empty: name at least one organ.")
    check_organs(organs)
    COHORT_FOLDER.check(folder, overwrite=overwrite)
    with folder_written_whole(folder) as staging:
        entries = _write_cases(staging, cases, organs, seed, config, advance)
        content = _description(entries, organs, seed, config)
        (staging / DATASET_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return folder / DATASET_FILE


def _write_cases(
    staging: Path,
    cases: int,
    organs: Sequence[str],
    seed: int,
    config: PhantomConfig,
    advance: Callable[[], None] | None,
) -> list[dict[str, Any]]:
    for name in ("imagesTr", "labelsTr"):
        (staging / name).mkdir()
    entries = []
    for index in range(cases):
        case = make_case(seed=seed, index=index, config=config, organs=organs)
        entries.append(_write_case(staging, seed, index, case))
        if advance is not None:
            advance()
    return entries


def _write_case(folder: Path, seed: int, index: int, case: PhantomCase) -> dict[str, Any]:
    # Not four digits: nnU-Net takes `_0000` at the end of a name for the channel.
    name = f"phantom_{index:03d}"
    entry = {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
    for kind, data in (("image", case.ct_hu), ("label", case.labels)):
        image = nibabel.Nifti1Image(np.asfortranarray(data), case.affine)
        image.header.set_xyzt_units("mm")
        # Some readers look at the qform only.
        image.set_sform(case.affine, code=1)
        image.set_qform(case.affine, code=1)
        nibabel.save(image, folder / entry[kind])
    return {
        **entry,
        # The seed is part of the patient, so that cohorts can be joined without mixing up people.
        "patient": f"phantom_{seed}_{index:03d}",
        "tumor_organs": list(case.tumor_organs),
        "tumors": [asdict(tumor) for tumor in case.tumors],
    }


def _description(
    entries: list[dict[str, Any]], organs: Sequence[str], seed: int, config: PhantomConfig
) -> dict[str, Any]:
    return {
        "name": "difftumor phantom",
        "description": "Synthetic abdominal CT in the portal venous phase, with tumors; no patient data.",
        "reference": "difftumor",
        "licence": "CC0-1.0",
        "release": __version__,
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {str(value): name for name, value in LABEL_NAMES.items()},
        "numTraining": len(entries),
        "numTest": 0,
        "training": entries,
        "test": [],
        "phantom": {"seed": seed, "organs": list(organs), **asdict(config), "spacing_mm": config.voxel_mm},
    }
