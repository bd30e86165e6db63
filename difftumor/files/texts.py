"""JSON, YAML and CSV that anybody may have written: read within bounds of size, depth, repetition and digits.

Whatever is wrong is a ValueError or an OSError that says it in one line; who reads knows what the file should be.
"""

from __future__ import annotations

import csv
import json
import stat
from pathlib import Path
from typing import Any

import yaml

# A list of a million cases has about half of this.
MOST_BYTES = 256 * 2**20
# YAML is read a hundred times slower than JSON.
_MOST_YAML = 2 * 2**20
_MOST_DEPTH = 100
# Nodes that YAML may stand for once its aliases are written out.
_MOST_NODES = 1_000_000
_MOST_DIGITS = 40
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
# Names of what a shell hands over, such as /dev/fd/63 for <(command).
_HANDED_OVER = ("/dev/", "/proc/self/fd/")
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_RESOLVER = yaml.resolver.Resolver()


def read_text(file: Path, *, most: int = MOST_BYTES) -> str:
    """Read UTF-8 text, with or without the byte order mark that spreadsheets put before it.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no regular file, no text, or longer than ``most`` bytes.
    """
    if not stat.S_ISREG(file.stat().st_mode) and not file.is_dir() and not str(file).startswith(_HANDED_OVER):
        raise ValueError("it is no regular file")
    with file.open("rb") as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it has more than {most >> 20} MiB")
    return content.decode("utf-8-sig")


def read_json(file: Path) -> Any:
    """Read JSON; raises as `read_text` and `parse_json`."""
    return parse_json(read_text(file))


def parse_json(text: str) -> Any:
    """Return what JSON text stands for.

    Raises:
        ValueError: It is not JSON, too deep, or holds a number of too many digits.
    """
    try:
        content = json.loads(text, parse_int=_whole)
    except RecursionError:
        raise _too_deep() from None
    level = [content]
    for _ in range(_MOST_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    if level:
        raise _too_deep()
    return content


def read_yaml(file: Path) -> Any:
    """Read YAML, of which JSON is a part; raises as `read_text` and `parse_yaml`."""
    return parse_yaml(read_text(file, most=_MOST_YAML))


def parse_yaml(text: str) -> Any:
    """Return what YAML text stands for, without making any objects but those of JSON and dates.

    Raises:
        ValueError: It is not YAML, too deep, or would be too large with its aliases written out.
    """
    try:
        _check_events(text)
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except (
        TypeError,
        OverflowError,
        RecursionError,
        KeyError,
        AttributeError,
    ) as error:  # keys and dates that cannot be
        raise ValueError(str(error)) from error


def read_table(file: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Read CSV whose first line names its columns.

    Returns:
        The names; and of each row the number of its line and its values by name, without those that are missing.

    Raises:
        OSError: The file cannot be read.
        ValueError: As `read_text`, or a field is too long, or a row has more values than columns.
    """
    lines = csv.reader(read_text(file).splitlines())
    rows = []
    try:
        names = next(lines, [])
        for values in lines:
            if len(values) > len(names):
                raise ValueError(f"line {lines.line_num} has more values than columns")
            if values:
                rows.append((lines.line_num, dict(zip(names, values, strict=False))))
    except csv.Error as error:
        raise ValueError(f"line {lines.line_num}: {error}") from error
    return names, rows


def _check_events(text: str) -> None:
    """Refuse YAML that is too deep, or too large once aliases are written out, before anything is made of it."""
    sizes: dict[str, int] = {}
    # Of each collection that is open: its anchor and the nodes inside it.
    stack: list[list[Any]] = [[None, 0]]
    for event in yaml.parse(text, _Loader):
        nodes = 0
        if isinstance(event, yaml.CollectionStartEvent):
            if event.anchor:
                sizes[event.anchor] = _MOST_NODES + 1  # inside of itself it never ends
            stack.append([event.anchor, 1])
            if len(stack) > _MOST_DEPTH:
                raise _too_deep()
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, nodes = stack.pop()
            if anchor:
                sizes[anchor] = nodes
        elif isinstance(event, yaml.ScalarEvent):
            nodes = 1
            if len(event.value) > _MOST_DIGITS and _tag(event) in _NUMBERS:
                raise ValueError(f"it holds a number of {len(event.value)} digits")
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.AliasEvent):
            nodes = sizes.get(event.anchor or "", 0)
        stack[-1][1] += nodes
        if stack[-1][1] > _MOST_NODES:
            raise ValueError("its aliases stand for too much, or for themselves")


def _tag(event: yaml.ScalarEvent) -> str:
    """Return the type that a scalar has, by its tag or else by how it is written."""
    return str(event.tag or _RESOLVER.resolve(yaml.ScalarNode, event.value, event.implicit))


def _whole(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"it holds a number of {len(digits)} digits")
    return int(digits)


def _too_deep() -> ValueError:
    return ValueError(f"it is nested more than {_MOST_DEPTH} deep")
