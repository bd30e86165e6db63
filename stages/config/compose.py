"""Composing the config of a stage from ``configs/`` and what a user types, by Hydra; errors are one sentence."""

from __future__ import annotations

import difflib
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from difftumor.errors import ConfigError
from stages.config.comparing import flatten
from stages.config.given import Given
from stages.config.options import RunOptions
from stages.config.reading import read_options, to_plain

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    AnyOptions = TypeVar("AnyOptions", bound=DataclassInstance)

OptionsT = TypeVar("OptionsT", bound=RunOptions)
CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def compose_config(stage: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Compose a stage's config as its command line does.

    Args:
        stage: ``autoencoder``, ``diffusion`` or ``segmentation``.
        overrides: What the user types, such as ``experiment=demo``.

    Raises:
        ConfigError: An override names an unknown option or group, or cannot be parsed.
    """
    register_names()
    with initialize_config_dir(str(CONFIGS), version_base="1.3", job_name=stage):
        try:
            # A search path of the user's own replaces ours, as on the command line.
            mine = [] if any(item.startswith("hydra.searchpath=") for item in overrides) else [_own_groups(stage)]
            return compose(stage, overrides=[*mine, *overrides])
        except OverrideParseException as error:
            name, given, value = error.override.partition("=")
            if not given:
                raise ConfigError(f"{name} has no value: write {name}=VALUE.") from error
            raise ConfigError(
                f"{error.override} cannot be read: quote a value that has spaces, commas, = or brackets, within the "
                f"quotes of the shell: '{name}=\"{value}\"'."
            ) from error
        except (HydraException, ValueError) as error:  # Hydra refuses some group choices with the latter
            raise ConfigError(_explain(error, stage)) from error


def register_names() -> None:
    """Make ``${organs:NAME,MORE}`` known to OmegaConf: the names of all organs that a model learns, joined by +."""
    OmegaConf.register_new_resolver("organs", _joined, replace=True)


def _joined(first: str, more: Sequence[Any] | None) -> str:
    names = [each.get("organ") if isinstance(each, Mapping) else each for each in more or ()]
    return "+".join([str(first), *(str(name.get("name") if isinstance(name, Mapping) else name) for name in names)])


def compose_options(stage: str, kind: type[OptionsT], overrides: Sequence[str] = ()) -> OptionsT:
    """Compose a stage's config and read it as its options.

    Args:
        stage: Name of the stage.
        kind: Its options.
        overrides: What the user types.

    Raises:
        ConfigError: As ``compose_config``, or an option is of the wrong type or out of range.
    """
    return read_options(kind, to_plain(compose_config(stage, overrides)))


def read_file(file: Path, kind: type[AnyOptions], words: Sequence[str], section: str = "") -> AnyOptions:
    """Read the options of a YAML file, with what a user types in place of its values.

    Args:
        file: Every option with its default.
        kind: The options.
        words: Such as ``sources=[liver]`` and ``data.liver=PATH``.
        section: Their dotted name for messages, empty at the top.

    Raises:
        ConfigError: The file is no mapping of options, or an option is unknown, of the wrong type or out of range.
    """
    try:
        config = OmegaConf.load(io.StringIO(_times_quoted(file.read_text(encoding="utf-8"))))
        for override in OverridesParser.create().parse_overrides(list(words)):
            if override.is_sweep_override():
                line = f"{section}.{override.input_line}" if section else override.input_line
                raise ConfigError(f"{line} gives several values: write a list as [a,b].")
            OmegaConf.update(config, override.key_or_group, override.value(), merge=False, force_add=True)
    except (OSError, yaml.YAMLError, HydraException, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ConfigError(f"The options of {file} cannot be read ({reason}): correct that option.") from error
    if not isinstance(config, DictConfig):
        raise ConfigError(f"{file} is not a mapping of options: start from the files in configs/.")
    return read_options(kind, to_plain(config), section)


def _times_quoted(text: str) -> str:
    """Quote what looks like a time of day: YAML 1.1 reads 24:00:00 as the number 86400, in base 60."""
    for token in reversed(list(yaml.scan(text))):
        if isinstance(token, yaml.ScalarToken) and token.plain and re.fullmatch(r"\d+(:\d+)+(\.\d*)?", token.value):
            at, end = token.start_mark.index, token.end_mark.index
            text = f'{text[:at]}"{text[at:end]}"{text[end:]}'
    return text


def given_by(stage: str, overrides: Sequence[str]) -> Given:
    """Return what a stage's command line gives by ``overrides``."""
    return Given.of(overrides, (CONFIGS / stage, CONFIGS))


def _own_groups(stage: str) -> str:
    """Return the override that lets a stage's config find the groups that it does not share."""
    return f"hydra.searchpath=[file://{CONFIGS / stage}]"


def _explain(error: Exception, stage: str) -> str:
    """One sentence from Hydra's several lines."""
    text = str(error)
    listing = f"`python -m stages.{stage} --cfg job` lists the options"
    if match := re.search(r"Could not (?:override|append to config\.|delete from config\.) ?'?([\w./@]+)'?", text):
        close = difflib.get_close_matches(match[1], _option_names(stage), n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        return f"Unknown option '{match[1]}': {hint}{listing}."
    if match := re.search(r"Could not find '([^']+)'", text):
        group, _, option = match[1].rpartition("/")
        available = re.search(r"Available options in '[^']*':\n((?:\t\S+\n)+)", text)
        choices = f"choose from {', '.join(available[1].split())}" if available else f"add configs/{match[1]}.yaml"
        return f"There is no {group} '{option}': {choices}."
    reason = text.splitlines()[0].rstrip(".")
    return f"The options cannot be composed ({reason}): {listing}."


def _option_names(stage: str) -> list[str]:
    values = OmegaConf.to_container(compose(stage, overrides=[_own_groups(stage)]))
    leaves = list(flatten({str(k): v for k, v in values.items()})) if isinstance(values, dict) else []
    return leaves + sorted({name.rpartition(".")[0] for name in leaves} - {""})
