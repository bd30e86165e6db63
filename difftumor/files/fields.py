"""Whether what a file gives to a field of a dataclass is of the type that the field states."""

import math
from numbers import Integral, Real
from typing import Any

# By the names of types: what each part is, how many there are (None for any number), and the same in words.
_KINDS: dict[str, tuple[type, int | None, str]] = {
    "bool": (bool, 1, "true or false"),
    "int": (Integral, 1, "a whole number"),
    "float": (Real, 1, "a finite number"),
    "str": (str, 1, "text"),
    "frozenset[str]": (str, None, "a list of names"),
    "tuple[float, float]": (Real, 2, "two finite numbers"),
    "Vector": (Real, 3, "three finite numbers, one per axis"),
    "Voxel": (Integral, 3, "three whole numbers, one per axis"),
    "tuple[bool, bool, bool]": (bool, 3, "three of true or false"),
}


def wanted_instead(value: Any, annotation: str) -> str:
    """Return in words what a field takes, if a value is something else.

    Args:
        value: What a file gives.
        annotation: The field's type as it is written, such as "float | None"; anything goes for one that is not listed.

    Returns:
        Nothing for a value of that type.

    Example:
        >>> wanted_instead(float("inf"), "float | None")
        'a finite number or null'
        >>> wanted_instead(None, "float | None")
        ''
    """
    name, _, optional = annotation.partition(" | ")
    if name not in _KINDS or (optional and value is None):
        return ""
    kind, count, words = _KINDS[name]
    parts = [value] if count == 1 else list(value) if isinstance(value, list | tuple | frozenset) else None
    if parts is not None and count in (None, len(parts)) and all(_is_a(kind, part) for part in parts):
        return ""
    return f"{words} or null" if optional else words


def _is_a(kind: type, value: Any) -> bool:
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, kind):
        return False
    return not isinstance(value, Real) or math.isfinite(value)
