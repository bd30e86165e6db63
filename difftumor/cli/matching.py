"""The options that say when a tumor is found, of all commands that count tumors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import typer

if TYPE_CHECKING:
    from difftumor.evaluation.detection import Matching

Rule = Literal["overlap", "iou", "center"]


def rule_option(panel: str | None = None) -> Any:
    """Return the option of the rule, in a panel of the help."""
    return typer.Option(
        "--matching",
        help="When a tumor is found: any common voxel, --minimum-iou, or the prediction's center in it.",
        rich_help_panel=panel,
    )


def iou_option(panel: str | None = None) -> Any:
    """Return the option of the least intersection over union, in a panel of the help."""
    return typer.Option(
        "--minimum-iou",
        help="Least intersection over union, for --matching iou (0.1).",
        show_default=False,
        rich_help_panel=panel,
    )


_DEFAULT_IOU = 0.1


def read_matching(rule: Rule, minimum_iou: float | None) -> Matching:
    """Return the rule that the options name.

    Raises:
        ConfigError: They do not fit together.
    """
    from difftumor.evaluation.detection import Matching

    default = _DEFAULT_IOU if rule == "iou" else 0.0
    return Matching(rule=rule, minimum_iou=default if minimum_iou is None else minimum_iou)
