"""A composed config on its way into constructor arguments; every key must be read by something."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from difftumor.errors import ConfigError

T = TypeVar("T")


class Settings(Mapping[str, Any]):
    """Read-only view of a config that remembers which keys were read.

    Keys are read as attributes (``settings.data.crop``), as items, or all at once (``**settings.network``). Lists come
    back as tuples.

    Args:
        values: Plain, resolved values; nested mappings become sections.
        path: Dotted name of this section, empty at the top.

    Raises:
        ConfigError: A key is read that is not there.
    """

    def __init__(self, values: Mapping[str, Any], path: str = "") -> None:
        self._path = path
        self._read: set[str] = set()
        self._values = {
            key: Settings(value, self._name(key)) if isinstance(value, Mapping) else _frozen(value)
            for key, value in values.items()
        }

    @property
    def path(self) -> str:
        """Dotted name of this section."""
        return self._path

    def _name(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else str(key)

    def __getitem__(self, key: str) -> Any:
        if key not in self._values:
            raise ConfigError(f"The config lacks '{self._name(key)}': add it, or start from the files in configs/.")
        self._read.add(key)
        return self._values[key]

    def __getattr__(self, key: str) -> Any:
        if key.startswith("_"):
            raise AttributeError(key)
        return self[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def unread(self) -> list[str]:
        """Dotted names of the keys that nothing has read so far."""
        names: list[str] = []
        for key, value in self._values.items():
            if isinstance(value, Settings):
                names += value.unread()
            elif key not in self._read:
                names.append(self._name(key))
        return names

    def check_all_read(self) -> None:
        """Refuse keys that nothing reads, which are misspelled or belong to another stage.

        Raises:
            ConfigError: Names the first such key.
        """
        if names := self.unread():
            raise ConfigError(f"Unknown option '{names[0]}': nothing reads it here, so remove it or correct its name.")


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


def construct(factory: Callable[..., T], section: Settings, **more: Any) -> T:
    """Call ``factory(**section, **more)``; a wrong key or value is an error that names the option.

    Args:
        factory: Class or function whose keyword arguments are the section's keys.
        section: Options to pass.
        more: Arguments that are not options.

    Raises:
        ConfigError: The section has a key that ``factory`` does not take, lacks one that it needs, or a value is
            refused with ``ValueError``.
    """
    parameters = inspect.signature(factory).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    known = [name for name in parameters if name not in more]
    for key in section:
        if key in more or (key not in known and not takes_any):
            raise ConfigError(f"Unknown option '{section.path}.{key}': known ones are {', '.join(known)}.")
    for name in known:
        required = parameters[name].default is inspect.Parameter.empty
        if required and name not in section and parameters[name].kind is inspect.Parameter.KEYWORD_ONLY:
            raise ConfigError(f"The config lacks '{section.path}.{name}': add it, or start from the files in configs/.")
    try:
        return factory(**section, **more)
    except (TypeError, ValueError) as error:  # TypeError: a word where a number belongs
        raise ConfigError(f"The options under '{section.path}' do not work: {error}") from error


def check_positive(**options: float) -> None:
    """Refuse options that are not above zero; ``__`` in a name stands for a dot.

    Raises:
        ConfigError: Names the first such option.
    """
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ConfigError(f"{name.replace('__', '.')} is {value!r}: give a number above 0.")


def check_whole(least: int, **options: int) -> None:
    """Refuse options that are not whole numbers from ``least`` on; ``__`` in a name stands for a dot.

    Raises:
        ConfigError: Names the first such option.
    """
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{name.replace('__', '.')} is {value!r}: give a whole number, {least} or more.")


def check_switch(**options: bool) -> None:
    """Refuse options that are neither true nor false; ``__`` in a name stands for a dot.

    Raises:
        ConfigError: Names the first such option.
    """
    for name, value in options.items():
        if not isinstance(value, bool):
            raise ConfigError(f"{name.replace('__', '.')} is {value!r}: choose true or false.")


def check_not_negative(**options: float) -> None:
    """Refuse options that are not finite numbers from 0 on; ``__`` in a name stands for a dot.

    Raises:
        ConfigError: Names the first such option.
    """
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ConfigError(f"{name.replace('__', '.')} is {value!r}: give a number from 0.")


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value
