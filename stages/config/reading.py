"""From a composed config to the typed options of a stage.

A stage's options are frozen dataclasses, one per section of the YAML, whose annotations say type and range. Every key
of the config is a field and every field without a default is a key; anything else is an error that names the option.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from difftumor.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    OptionsT = TypeVar("OptionsT", bound=DataclassInstance)

_COUNTS = {1: "one", 2: "two", 3: "three", 4: "four"}


@dataclass(frozen=True)
class Hint:
    """Marks an annotation with the remedy that errors state, in place of what the type says.

    Args:
        text: What follows after "data.crop is […]: ", without the period.
    """

    text: str


@dataclass(frozen=True)
class NumberRange:
    """Marks an annotation with the range of a number.

    Args:
        low: Smallest number allowed.
        below: Numbers must be smaller than this.
        most: Largest number allowed.
        zero: Whether 0 is allowed where ``low`` is 0.
    """

    low: float = 0
    below: float = math.inf
    most: float = math.inf
    zero: bool = True

    def holds(self, value: float) -> bool:
        """Whether a number is in the range."""
        return self.low <= value <= self.most and value < self.below and (self.zero or value != 0)

    def describe(self, *, whole: bool) -> str:
        """Say which numbers are allowed."""
        if whole:
            return f"a whole number, {self.low:g} or more"
        if math.isfinite(self.most):
            return f"a number from {self.low:g} to {self.most:g}"
        if math.isfinite(self.below):
            return f"a number {'from' if self.zero else 'above'} {self.low:g}, below {self.below:g}"
        return f"a number from {self.low:g}" if self.zero else f"a number above {self.low:g}"


@dataclass(frozen=True)
class ReadBy:
    """Marks an annotation whose values a function reads.

    Args:
        read: Takes the value and ``field``, the option's name for messages.
    """

    read: Callable[..., Any]


# Whole numbers from 1 or 0.
Count = Annotated[int, NumberRange(1)]
WholeNumber = Annotated[int, NumberRange(0)]
# Numbers above 0, from 0, from 0 to 1, from 0 and below 1.
Positive = Annotated[float, NumberRange(zero=False)]
NotNegative = Annotated[float, NumberRange()]
Share = Annotated[float, NumberRange(most=1)]
ShareBelowOne = Annotated[float, NumberRange(below=1)]


class _RefusedError(Exception):
    """A value is not of the type that the option has."""


def to_plain(config: DictConfig) -> dict[str, Any]:
    """Return a config as plain values, interpolations resolved.

    Raises:
        ConfigError: An interpolation cannot be resolved or a mandatory value is missing.
    """
    try:
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(f"The config cannot be resolved ({reason}): correct that option.") from error
    if not isinstance(values, dict):
        raise ConfigError("The config is not a mapping of options: start from the files in configs/.")
    return {str(key): value for key, value in values.items()}


def read_options(kind: type[OptionsT], values: Mapping[str, Any], section: str = "") -> OptionsT:
    """Return plain values as options, lists as tuples, everything checked.

    Args:
        kind: A dataclass whose annotations say what each option takes.
        values: Plain, resolved values.
        section: Dotted name of the section, empty at the top.

    Raises:
        ConfigError: A key is unknown or missing, or a value is of the wrong type or out of range; names the option.
        DiffTumorError: What the dataclass itself raises.
    """
    prefix = f"{section}." if section else ""
    types = get_type_hints(kind, include_extras=True)
    known = {field.name: field for field in fields(kind)}
    for key in values:
        if key not in known:
            raise ConfigError(f"Unknown option '{prefix}{key}': known ones are {', '.join(known)}.")
    given: dict[str, Any] = {}
    for name, field in known.items():
        if name in values:
            given[name] = _read_option(types[name], values[name], f"{prefix}{name}")
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(f"The config lacks '{prefix}{name}': add it, or start from the files in configs/.")
    try:
        return kind(**given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"The options under '{section}' do not work: {error}") from error


def _read_option(kind: Any, value: Any, name: str) -> Any:
    try:
        return _read(kind, value, name)
    except _RefusedError as error:
        hint = _describe(kind)
        verb = "" if hint.startswith(("choose ", "leave ", "give ")) else "give "
        raise ConfigError(f"{name} is {value!r}: {verb}{hint}.") from error


def _read(kind: Any, value: Any, name: str) -> Any:
    """Return a value as its type says.

    Numbers stay what they are (3 is not made 3.0), since artifacts and stored configs hold them as given.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        for mark in arguments[1:]:
            if isinstance(mark, ReadBy):
                return mark.read(value, field=name)
        found = _read(arguments[0], value, name)
        if any(isinstance(mark, NumberRange) and not mark.holds(found) for mark in arguments[1:]):
            raise _RefusedError
        return found
    if origin in (Union, UnionType):
        return _read_any(arguments, value, name)
    if origin is Literal:
        return _one_of(value, arguments)
    if origin in (tuple, frozenset):
        return _read_items(kind, value, name)
    if kind is Any:
        return tuple(value) if isinstance(value, list) else value
    if is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            raise _RefusedError
        return read_options(kind, value, name)
    return _read_plain(kind, value)


def _read_any(kinds: tuple[Any, ...], value: Any, name: str) -> Any:
    """Read a value as the first type that takes it; of several sections, the one of this ``name``."""
    if value is None and NoneType in kinds:
        return None
    sections = [kind for kind in kinds if is_dataclass(kind)]
    if len(sections) > 1 and isinstance(value, Mapping):
        names = {get_args(get_type_hints(kind)["name"])[0]: kind for kind in sections}
        chosen = _read_option(Literal[tuple(names)], value.get("name"), f"{name}.name")
        return _read(names[chosen], value, name)
    for kind in kinds:
        try:
            return _read(kind, value, name)
        except _RefusedError:
            continue
    raise _RefusedError


def _read_items(kind: Any, value: Any, name: str) -> Any:
    if not isinstance(value, list | tuple):
        raise _RefusedError
    items = get_args(kind)
    if get_origin(kind) is frozenset or items[-1] is Ellipsis:
        items = (items[0],) * len(value)
    if len(items) != len(value):
        raise _RefusedError
    found = tuple(_read(item, each, name) for item, each in zip(items, value, strict=True))
    return frozenset(found) if get_origin(kind) is frozenset else found


def _one_of(value: Any, choices: tuple[Any, ...]) -> Any:
    if isinstance(value, bool) or value not in choices:
        raise _RefusedError
    return value


def _read_plain(kind: Any, value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is NoneType or kind is None:
        fits = value is None
    elif kind is Path:
        fits = value != "" and isinstance(value, str | int) and not isinstance(value, bool)
        value = Path(str(value))
    elif kind is float:
        fits = is_number and math.isfinite(value)
    elif kind is int:
        fits = is_number and isinstance(value, int)
    else:
        fits = isinstance(value, kind)
    if not fits:
        raise _RefusedError
    return value


def _describe(kind: Any) -> str:
    """Say what an option takes."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        inner, *marks = arguments
        for mark in marks:
            if isinstance(mark, Hint):
                return mark.text
            if isinstance(mark, NumberRange):
                return mark.describe(whole=inner is int)
        return _describe(inner)
    if origin in (Union, UnionType):
        described = [_describe(each) for each in arguments]
        return " or ".join(", ".join(described).rsplit(", ", 1)) if len(described) > 1 else described[0]
    if origin is Literal:
        return "choose " + " or ".join(", ".join(map(str, arguments)).rsplit(", ", 1))
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"{_COUNTS[len(arguments)]} numbers, each {_describe(arguments[0])}"
    if origin in (tuple, frozenset):
        return f"a list, each item {_describe(arguments[0])}"
    words = {NoneType: "null", bool: "choose true or false", int: "a whole number", float: "a number", str: "a word"}
    return words.get(kind, "a path" if kind is Path else "a section of options")
