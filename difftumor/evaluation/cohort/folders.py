"""The files of an evaluation."""

RESULT_FILES = (
    "cases.csv", "lesions.csv", "summary.json", "summary.md", "tables.tex", "report.html", "sensitivity.png",
    "scores.png", "froc.png", "worst_cases.png",
)  # fmt: skip
# Holds the scores of the other methods, a folder each.
COMPARED = "compared"
