"""``difftumor synthesize --cases``: tumors in many scans."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from difftumor.errors import ConfigError

if TYPE_CHECKING:
    from difftumor.synthesis.scan.options import ScanOptions, SynthesisOptions


def synthesize_cases(
    options: SynthesisOptions, source: Path, files: ScanOptions, *, out: Path, jobs: int, overwrite: bool
) -> None:
    """Make tumors in all scans of a list, and say what became of each.

    Args:
        options: Which tumors, and how they are made.
        source: The list, or a folder of CTs.
        files: Folder of masks or label maps named like the CTs, and what their numbers mean.
        out: Every case gets a folder in here.
        jobs: Processes.
        overwrite: Make again what was made before.

    Raises:
        CaseListError: The list cannot be used; or some of its scans failed, once the others are done.
        ConfigError: Files of a single scan are named.
    """
    from difftumor.cli.many import check_outputs, progress_bar, summarized
    from difftumor.datasets.label_folders import listed_cases
    from difftumor.files.results import check_folder
    from difftumor.scans.organs import get_organ
    from difftumor.synthesis.scan.record import FILES

    if files.ct or files.segments:
        raise ConfigError("--cases names the scans: leave out --ct and --segments.")
    check_folder(out, option="--out")
    organ, listed = get_organ(options.organ), listed_cases(source, files.mask, files.convention)
    options.find_models()
    options.find_sources()
    # Here, because it needs PyTorch: what is wrong above is reported at once.
    from difftumor.synthesis.scan.cohort import SUMMARY_COLUMNS, synthesize_cohort, usable_inputs

    mask = files.organ_mask is not None
    ready, unusable = usable_inputs(
        listed, organ, organ_labels=files.organ_labels, mask=mask, accept_hu=files.accept_hu
    )
    given = [path for _, inputs in ready for paths in inputs.files.values() for path in paths]
    names = {case_id: [f"{case_id}/{name}" for name in FILES] for case_id, _ in ready}
    check_outputs(names, [listed.source, *given], out)
    said: set[str] = set()
    with summarized(out, SUMMARY_COLUMNS, [case.id for case in listed.cases], overwrite=overwrite) as rows:
        rows += [outcome.summary for outcome in unusable]
        with progress_bar("Making tumors", len(ready)) as advance:
            for outcome in synthesize_cohort(options.load, ready, out=out, jobs=jobs, overwrite=overwrite):
                for note in () if outcome.report is None else outcome.report.notes:
                    if note not in said:
                        typer.echo(f"Warning: {note}", err=True)
                        said.add(note)
                rows.append(outcome.summary)
                typer.echo(outcome.sentence, err=outcome.status == "failed")
                advance()
    typer.echo(f"Results are in {out}.")
