"""The ``--tumors`` file: YAML that says what tumors a user wants."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from difftumor.errors import ConfigError
from difftumor.synthesis.spec import TumorSpec


@dataclass(frozen=True)
class TumorPlan:
    """The content of a ``--tumors`` file.

    Args:
        tumors: The entries, in order.
        seed: Seed that the file states; None where it states none.
    """

    tumors: tuple[TumorSpec, ...]
    seed: int | None = None


def read_plan(path: Path) -> TumorPlan:
    """Read a ``--tumors`` file: YAML with ``tumors``, a list of entries, and optionally ``seed``.

    Raises:
        ConfigError: The file is missing, is no YAML, or has an unknown or wrong field; the message names both.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"--tumors {path} cannot be read ({reason}): give a YAML file.") from error
    entries = content.get("tumors") if isinstance(content, Mapping) else content
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        raise ConfigError(f"--tumors {path} has no list of tumors: write 'tumors:' and entries that begin with '-'.")
    extra = sorted(set(map(str, content)) - {"tumors", "seed"}) if isinstance(content, Mapping) else []
    if extra:
        raise ConfigError(f"--tumors {path} has the unknown field {extra[0]!r}: known are seed and tumors.")
    seed = content.get("seed") if isinstance(content, Mapping) else None
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
        raise ConfigError(f"--tumors {path}: seed is {seed!r}: give a whole number.")
    try:
        specs = [TumorSpec.from_dict(entry, where=f"tumors[{i}]") for i, entry in enumerate(entries)]
    except ConfigError as error:
        raise ConfigError(f"--tumors {path}: {error}") from error
    return TumorPlan(tuple(specs), seed)
