"""Options that several commands have, and how their words are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import typer

from difftumor.errors import ConfigError
from difftumor.files.lock import LockPlaceError, locked

if TYPE_CHECKING:
    from difftumor.evaluation.metrics.detection import Matching

T = TypeVar("T")
# What numbers of label maps may mean, for help; `organs.CONVENTIONS` has them, and loads more.
CONVENTIONS = (
    "totalsegmentator (version 2), totalsegmentator_v1, abdomenatlas, amos, btcv, flare, universal_model, msd_liver, "
    "msd_pancreas, lits, kits"
)


def option(text: str, panel: str | None = None, **settings: Any) -> Any:
    """Return an option whose help shows no default, in a panel of the help."""
    return typer.Option(help=text, show_default=False, rich_help_panel=panel, **settings)


def flag(name: str, text: str, panel: str | None = None) -> Any:
    """Return an option without a value and without a ``--no-`` form, in a panel of the help."""
    return typer.Option(name, help=text, rich_help_panel=panel)


@contextmanager
def held(out: Path | None) -> Iterator[None]:
    """Keep others from writing to a place (``--out``) while the block runs; None is no place.

    Raises:
        ConfigError: Somebody else writes there.
    """
    with ExitStack() as stack:
        # A place that cannot be written to is refused by the command itself, which knows what it is.
        with suppress(LockPlaceError):
            if out is not None:
                stack.enter_context(locked(out, remedy="give another place (--out)"))
        yield


def parse_names(text: str, *, option: str, known: Sequence[str]) -> tuple[str, ...]:
    """Split ``"liver,kidney"`` into names.

    Args:
        text: Names separated by commas; blanks around them are dropped.
        option: Option that the text came from, for the error.
        known: Names that are allowed.

    Returns:
        The names in the order given, without repeats.

    Raises:
        ConfigError: The list is empty or a name is unknown.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        got = f"unknown name {unknown[0]!r}" if unknown else "no name"
        raise ConfigError(f"{option} {text!r} has {got}: give one or more of {', '.join(known)}, separated by commas.")
    return names


def parse_numbers(text: str, kind: Callable[[str], T], *, option: str, counts: Sequence[int]) -> tuple[T, ...]:
    """Split ``"96,96,64"`` into numbers.

    Args:
        text: Numbers separated by commas.
        kind: ``int`` or ``float``.
        option: Option that the text came from, for the error.
        counts: How many numbers are allowed, for instance ``(1, 3)``.

    Returns:
        The numbers.

    Raises:
        ConfigError: A word is not a number, or there are too many or too few.
    """
    try:
        numbers = tuple(kind(word) for word in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in counts:
        many = f"{counts[0]} to {counts[-1]}" if len(counts) > 2 else " or ".join(map(str, counts))
        raise ConfigError(f"{option} {text!r} is not understood: give {many} numbers, separated by commas.")
    return numbers


def parse_organ_labels(text: str | None) -> tuple[int, ...]:
    """Split ``--organ-label``; empty if not given.

    Raises:
        ConfigError: They are not whole numbers.
    """
    return () if text is None else parse_numbers(text, int, option="--organ-label", counts=range(1, 33))


def named_folder(word: str) -> tuple[str | None, Path]:
    """Read ``[NAME=]DIR``; an existing folder with "=" in its name needs no name before it."""
    name, sign, folder = word.partition("=")
    if not sign or Path(word).is_dir():
        return None, Path(word)
    return name, Path(folder)


def accept_hu_option(panel: str | None = None) -> Any:
    """Return ``--accept-hu``, in a panel of the help."""
    return flag("--accept-hu", "Go on with CTs that cannot be in Hounsfield units, with a warning.", panel)


Rule = Literal["overlap", "iou", "center"]


def rule_option(panel: str | None = None) -> Any:
    """Return ``--matching``, in a panel of the help."""
    return typer.Option(
        "--matching",
        help="When a tumor counts as found: any common voxel, --minimum-iou, or the prediction's center in it.",
        rich_help_panel=panel,
    )


def iou_option(panel: str | None = None) -> Any:
    """Return ``--minimum-iou``, in a panel of the help."""
    return option("Smallest intersection over union, for --matching iou (0.1).", panel)


_DEFAULT_IOU = 0.1


def read_matching(rule: Rule, minimum_iou: float | None) -> Matching:
    """Return the rule that the two options name.

    Raises:
        ConfigError: They contradict each other.
    """
    from difftumor.evaluation.metrics.detection import Matching

    default = _DEFAULT_IOU if rule == "iou" else 0.0
    return Matching(rule=rule, minimum_iou=default if minimum_iou is None else minimum_iou)
