"""Evaluations of several organs and methods, combined into the tables of the papers."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from difftumor.errors import CaseListError
from difftumor.evaluation.cohort.tables import (
    Summary,
    best,
    folds_table,
    mean_sd,
    methods_table,
    nsd_note,
    percent,
    sensitivity_table,
)
from difftumor.files.texts import read_json
from difftumor.files.writing import folder_written_whole
from difftumor.reporting.tables import Table

TABLE_FILES = ("tables.md", "tables.tex")
# Both files begin with this table, by which a later run knows them.
_FIRST_TITLE = "Tumor segmentation by organ"
# By method and organ; pairs may be missing.
Summaries = Mapping[tuple[str, str], Summary]


def read_summaries(folders: Iterable[tuple[str | None, Path]]) -> Summaries:
    """Read the summaries of evaluations, with those of the methods that they compare.

    Args:
        folders: Folders that an evaluation has written, each with a name for its first method; None for its own name.

    Raises:
        CaseListError: A folder holds no summary, a method and organ come twice, or settings differ.
    """
    found: dict[tuple[str, str], Summary] = {}
    for name, folder in folders:
        for method, summary in _summaries(folder, name).items():
            key = (method, str(summary["settings"]["organ"]))
            if key in found:
                raise CaseListError(
                    f"{folder} has another evaluation of {method} in the {key[1]}: name it, as NAME={folder}."
                )
            for rule in ("tolerance_mm", "matching", "level"):
                if len({each["settings"].get(rule) for each in (*found.values(), summary)}) > 1:
                    raise CaseListError(
                        f"{folder} was evaluated with another {rule} than the others: evaluate all alike."
                    )
            found[key] = summary
    return found


def are_tables(folder: Path) -> bool:
    """Whether all of `TABLE_FILES` that a folder holds are such tables."""
    return all(_is_table(folder / name) for name in TABLE_FILES if (folder / name).exists())


def _is_table(file: Path) -> bool:
    if not file.is_file():
        return False
    with file.open(encoding="utf-8", errors="replace") as stream:
        return _FIRST_TITLE in stream.read(200)


def write_tables(out: Path, summaries: Summaries) -> str:
    """Write `TABLE_FILES`: tables of all organs, and for each organ the methods, their detection and folds.

    Returns:
        The text of ``tables.md``.
    """
    by_organ: dict[str, dict[str, Summary]] = {}
    for (method, organ), summary in summaries.items():
        by_organ.setdefault(organ, {})[method] = summary
    sections: list[tuple[str, list[Table]]] = [("All organs", list(organ_tables(summaries)))]
    for organ, methods in by_organ.items():
        found = [methods_table(methods), sensitivity_table(methods), folds_table(methods)]
        sections.append((organ, [table for table in found if table is not None]))
    text = "\n\n".join(part for title, some in sections for part in (f"# {title}", *(each.section() for each in some)))
    latex = "\n".join(table.latex() for _, some in sections for table in some)
    with folder_written_whole(out, keep_others=True) as staging:
        for name, content in zip(TABLE_FILES, (text + "\n", latex), strict=True):
            (staging / name).write_text(content, encoding="utf-8")
    return text


def organ_tables(summaries: Summaries) -> tuple[Table, Table]:
    """Return methods by organs: DSC and NSD (Table 7 of DiffTumor), sensitivity to early tumors (Tables 2 and 3).

    Args:
        summaries: By method and organ; pairs may be missing.
    """
    methods = list(dict.fromkeys(method for method, _ in summaries))
    organs = list(dict.fromkeys(organ for _, organ in summaries))
    scores = [(organ, score) for organ in organs for score in ("tumor_dsc", "tumor_nsd")]

    def entry(method: str, organ: str, score: str) -> Mapping[str, Any]:
        summary = summaries.get((method, organ))
        return (
            {"mean": None, "sd": None, "count": 0} if summary is None else summary["scores"]["cases_with_tumor"][score]
        )

    def early(method: str, organ: str) -> Mapping[str, Any]:
        summary = summaries.get((method, organ))
        return {"value": None, "total": 0} if summary is None else summary["detection"]["early_sensitivity"]

    entries = {method: [entry(method, organ, score) for organ, score in scores] for method in methods}
    segmentation = Table(
        ("Method", *(f"{organ} {score[-3:].upper()} (%)" for organ, score in scores)),
        [(method, *(mean_sd(e["mean"], e["sd"]) for e in row)) for method, row in entries.items()],
        title=f"{_FIRST_TITLE}: mean ± SD",
        bold=best(*([[e[name] for e in row] for row in entries.values()] for name in ("mean", "count"))),
        note=nsd_note({f"{method} {organ}": summary for (method, organ), summary in summaries.items()}),
    )
    rates = [[early(method, organ) for organ in organs] for method in methods]
    detection = Table(
        ("Method", *organs),
        [(method, *(percent(rate["value"]) for rate in row)) for method, row in zip(methods, rates, strict=True)],
        title="Detection of early tumors: tumor-wise sensitivity (%)",
        bold=best(*([[rate[name] for rate in row] for row in rates] for name in ("value", "total"))),
    )
    return segmentation, detection


def _summaries(folder: Path, name: str | None) -> dict[str, Summary]:
    file = folder / "summary.json"
    if not file.is_file():
        raise CaseListError(f"{file} does not exist: give a folder that difftumor evaluate has written.")
    try:
        summary = read_json(file)
        found = {name or str(summary["method"]): summary, **summary.get("compared", {})}
        for each in found.values():
            each["settings"]["organ"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CaseListError(f"{file} is not a summary of evaluate: give a folder that it has written.") from error
    return found
