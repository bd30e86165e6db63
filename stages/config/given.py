"""Which options a command gives, by name or by a choice such as experiment=demo; a run keeps its own for the others."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from stages.config.comparing import NEUTRAL, flatten, with_earlier
from stages.config.reading import to_plain

# A preset is a set of defaults: whoever repeats the command of an old run means the values that it had then.
_PRESETS = ("experiment", "ablation")


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a command says, apart from what is composed by default.

    Args:
        names: Options given by name.
        choices: Files chosen, by group: ``{"experiment": "demo"}``.
        sets: Options that the files chosen set, by group.
    """

    names: Collection[str] = ()
    choices: Mapping[str, str] = field(default_factory=dict)
    sets: Mapping[str, Collection[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, overrides: Sequence[str], folders: Sequence[Path]) -> Given:
        """Read what a user types.

        Args:
            overrides: Such as ``experiment=demo`` and ``optimizer.lr=1e-3``.
            folders: Where the folders of groups are.
        """
        names: set[str] = set()
        choices: dict[str, str] = {}
        sets: dict[str, Collection[str]] = {}
        for each in OverridesParser.create().parse_overrides(list(overrides)):
            key, value = str(each.key_or_group), each.value()
            found = [folder / key for folder in folders if (folder / key).is_dir()]
            if found and not isinstance(value, Mapping):
                chosen = [str(one) for one in (value if isinstance(value, list) else [value])]
                choices[key] = ",".join(chosen)
                files = (folder / f"{name}.yaml" for name in chosen for folder in found)
                sets[key] = {name for file in files if file.is_file() for name in _set_by(file, key)}
            elif isinstance(value, Mapping):
                names |= set(flatten(value, f"{key}."))
            else:
                names.add(key)
        return cls(names=names, choices=choices, sets=sets)

    def decides(self, before: Mapping[str, str] | None) -> set[str]:
        """Return the options that are given and not only repeated.

        Args:
            before: The choices that the run was started with; None for a run of a version that did not record them.
        """
        changed = {
            group
            for group, choice in self.choices.items()
            if (group not in _PRESETS if before is None else before.get(group) != choice)
        }
        return {*self.names, *(name for group in changed for name in self.sets[group])}


def with_stored(
    config: DictConfig, stored: Mapping[str, Any], choices: Mapping[str, str] | None, given: Given
) -> tuple[DictConfig, dict[str, tuple[Any, Any]]]:
    """Return a config in which what is not given is as the run has it, and what differs from the config before.

    Args:
        config: Composed config.
        stored: The config of the run that goes on.
        choices: Files that the command chose which started it; None if nobody recorded them.
        given: What the command gives.

    Returns:
        A new config, and by option the run's value and the one composed today.
    """
    today, merged = flatten(to_plain(config)), copy.deepcopy(config)
    decided = given.decides(choices)
    kept = {
        name: value
        for name, value in with_earlier(flatten(stored), today).items()
        if name in today and name not in {*NEUTRAL, *decided}
    }
    # A section of another name, such as another backbone, has options of its own.
    for key in (key for key, section in stored.items() if isinstance(section, Mapping) and f"{key}.name" in kept):
        if kept[f"{key}.name"] != today[f"{key}.name"] and not any(name.startswith(f"{key}.") for name in decided):
            OmegaConf.update(merged, key, stored[key], merge=False, force_add=True)
    for name, value in kept.items():
        OmegaConf.update(merged, name, value, merge=False)
    return merged, {name: (value, today[name]) for name, value in kept.items() if value != today[name]}


def describe(differing: Mapping[str, tuple[Any, Any]]) -> str:
    """Say which values a run keeps that differ from today's; empty if none does."""
    if not differing:
        return ""
    values = ", ".join(f"{name}={own} (now {today})" for name, (own, today) in differing.items())
    return f" with the values that it was started with, of which these are no longer the defaults: {values}"


def _set_by(file: Path, group: str) -> list[str]:
    """Return the options that a file of a group sets."""
    values = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    assert isinstance(values, dict)
    plain = {str(key): value for key, value in values.items() if key != "defaults"}
    is_global = re.search(r"^# @package _global_", file.read_text(encoding="utf-8"), re.MULTILINE)
    return list(flatten(plain, "" if is_global else f"{group}."))
