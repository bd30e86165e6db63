"""Jobs of the entry on real sarcomas: lists of the folds, and tumors made before in the slabs without any.

``difftumor synthesize --cases`` knows registered organs alone; here the organ is that of the diffusion model.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from difftumor.cli.many import SUMMARY_FILE, summarized
from difftumor.datasets.cases import CaseList, folds, read_cases, write_case_list
from difftumor.errors import DiffTumorError
from difftumor.files.writing import folder_written_whole, written_whole
from difftumor.models.artifact import pick_device
from difftumor.models.artifact_config import read_config
from difftumor.scans.organs import Organ
from difftumor.synthesis.spec import TumorSpec
from stages.config.reading import read_options
from studies.jobs.measurement import first_line
from studies.sarcoma_data import write_sarcoma
from studies.sarcoma_segmentation import write_slabs

# Files of a fold: all patients with those held out for validation, the training patients, their slabs, the others.
FOLD, TRAINING, SLABS, TEST = "fold{}.json", "training{}.json", "slabs{}.json", "test{}.json"
# Written once tumors are made in all scans; their summary is there also if some have failed.
MADE = "made.json"


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status; errors are one sentence."""
    parser = argparse.ArgumentParser(prog="python -m studies.evidence.sarcoma_jobs", description=first_line(__doc__))
    jobs = parser.add_subparsers(dest="job", required=True)
    lists = jobs.add_parser("lists", help="write label maps, slabs and lists of all folds")
    lists.add_argument("--data", type=Path, required=True, help="folder of <patient>/ct.nii.gz and tumor.nii.gz")
    lists.add_argument("--folds", type=int, default=4, help="number of folds (4)")
    make = jobs.add_parser("make", help="make late tumors in the scans of a list")
    make.add_argument("--cases", type=Path, required=True, help="list of slabs")
    make.add_argument("--model", type=Path, required=True, help="diffusion model of late tumors")
    make.add_argument("--rounds", type=int, default=3, help="copies of each scan, with different tumors (3)")
    make.add_argument("--steps", type=int, help="of DDIM, trailing; by default as the model says")
    make.add_argument("--device", default="auto", help="auto, cpu, cuda")
    make.add_argument("--overwrite", action="store_true", help="make again what another model has made")
    for each in (lists, make):
        each.add_argument("--out", type=Path, required=True, help="folder for the results")
    arguments = parser.parse_args(words)
    try:
        if arguments.job == "lists":
            write_folds(arguments.data, arguments.out, count=arguments.folds)
        else:
            make_tumors(
                arguments.cases,
                arguments.model,
                arguments.out,
                rounds=arguments.rounds,
                steps=arguments.steps,
                device=arguments.device,
                overwrite=arguments.overwrite,
            )
    except DiffTumorError as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    return 0


def write_folds(source: Path, folder: Path, *, count: int) -> None:
    """Write label maps of all patients, slabs without tumor, and the lists of each fold; whole or not at all.

    Args:
        source: Folder of ``<patient>/ct.nii.gz`` and ``<patient>/tumor.nii.gz``.
        folder: Folder to make.
        count: Number of folds.

    Raises:
        CaseListError: There are no patients, or fewer than folds.
    """
    with folder_written_whole(folder) as staging:
        listed = read_cases(write_sarcoma(source, staging / "data", count=count, fold=0))
        (staging / "slabs").mkdir()
        slabs = {case.id: tuple(write_slabs(case, staging / "slabs")) for case in listed.cases}
        for fold in range(count):
            training, held_out = folds(listed.cases, count=count, fold=fold, seed=0)
            hosts = tuple(slab for case in training for slab in slabs[case.id])
            validation = tuple(case.id for case in held_out)
            parts = {
                FOLD: CaseList(listed.cases, listed.label_names, folder, validation_ids=validation),
                TRAINING: CaseList(training, listed.label_names, folder),
                SLABS: CaseList(hosts, listed.label_names, folder),
                TEST: CaseList(held_out, listed.label_names, folder),
            }
            for file, part in parts.items():
                name = file.format(fold)
                write_case_list(staging / name, part, name=f"Soft-tissue sarcoma, {Path(name).stem}")


def make_tumors(
    cases: Path, model: Path, folder: Path, *, rounds: int, steps: int | None, device: str, overwrite: bool = False
) -> None:
    """Make a late diffusion tumor in every scan of a list, several times.

    Args:
        cases: List of scans without tumors.
        model: The diffusion model; the organ is that which it was trained on.
        folder: Every scan and round gets a folder in here.
        rounds: How many tumors each scan gets, one in each of its copies.
        steps: Of DDIM, trailing; None for what the model says.
        device: Where to make them.
        overwrite: Make again what is there.

    Raises:
        DiffTumorError: The model or the list cannot be used, or scans have failed.
    """
    # Here, because they load PyTorch, which plans do without.
    from difftumor.synthesis.scan.cohort import SUMMARY_COLUMNS, synthesize_cohort, usable_inputs
    from difftumor.synthesis.scan.files import ScanSynthesizer
    from difftumor.synthesis.scan.loading import load_textures, synthesizer_of

    organ = read_options(Organ, read_config(model).training["config"]["organ"], "organ")
    ready, unusable = usable_inputs(read_cases(cases), organ)
    sampler = {} if steps is None else {"kind": "ddim", "steps": steps, "spacing": "trailing"}
    textures = load_textures({"late": model}, device=pick_device(device), sampler=sampler)
    synthesizer = synthesizer_of(textures, organ=organ, device=pick_device(device))
    names = [f"{case}_{number}" for number in range(rounds) for case, _ in ready]
    with summarized(folder, SUMMARY_COLUMNS, [*names, *(outcome.id for outcome in unusable)]) as rows:
        rows += [outcome.summary for outcome in unusable]
        for number in range(rounds):
            maker = ScanSynthesizer(
                synthesizer=synthesizer,
                tumors=(TumorSpec(generator="diffusion", size="late", placement="uniform"),),
                seed=number,
                models={group: texture.record for group, texture in textures.items()},
            )
            inputs = [(f"{case}_{number}", files) for case, files in ready]
            for outcome in synthesize_cohort(lambda maker=maker: maker, inputs, out=folder, overwrite=overwrite):  # type: ignore[misc]
                rows.append(outcome.summary)
                print(outcome.sentence, flush=True)
    with written_whole(folder / MADE) as temporary:
        temporary.write_text(json.dumps({"scans": sorted(names)}, indent=1) + "\n", encoding="utf-8")
    print(f"{folder / SUMMARY_FILE} says what became of each.")


if __name__ == "__main__":
    sys.exit(main())
