"""What commands share: words that stand for lists, and the check of an output folder."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from difftumor.errors import ConfigError

T = TypeVar("T")


def parse_names(text: str, *, option: str, known: Sequence[str]) -> tuple[str, ...]:
    """Split ``"liver,kidney"`` into names.

    Args:
        text: Names separated by commas; blanks around them are dropped.
        option: Option that the text came from, for the error.
        known: Names that are allowed.

    Returns:
        The names in the order given, without repeats.

    Raises:
        ConfigError: If the list is empty or a name is unknown.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        got = f"unknown name {unknown[0]!r}" if unknown else "no name"
        raise ConfigError(
            f"{option} {text!r} holds {got}: give one or more of {', '.join(known)}, separated by commas."
        )
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
        ConfigError: If a word is not a number or their count is not allowed.
    """
    try:
        numbers = tuple(kind(word) for word in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in counts:
        many = " or ".join(str(count) for count in counts)
        raise ConfigError(f"{option} {text!r} is not understood: give {many} number(s) with commas between.")
    return numbers


def check_folder(path: Path, *, option: str) -> None:
    """Refuse a file where a folder is to be made, or above it, before hours are spent on what would go there.

    Raises:
        ConfigError: The path is a file or lies inside of one.
    """
    for above in (path, *path.parents):
        if above.is_dir():
            return
        if above.exists():
            what = "is a file" if above == path else f"lies inside the file {above}"
            raise ConfigError(f"{option} {path} {what}: give a folder.")
