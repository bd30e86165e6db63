"""The five dimensions in which tumors vary, each with a distribution and limits (Hu et al. 2023, section 5.5).

The paper names dimensions and levels, μ to μ ± 3σ, but not the distributions behind them. Those here are derived from
its Tables 1 and 6; docs/robustness.md says how.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from difftumor.errors import ConfigError
from difftumor.files.texts import read_yaml

# Standard deviations from the mean.
LEVELS = (-3, -2, -1, 0, 1, 2, 3)


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One property in which tumors vary.

    Args:
        name: A key of ``DEFAULTS``.
        unit: Unit of its values; empty for none.
        mean: μ; the median if ``log``.
        sd: σ; the factor from one level to the next if ``log``.
        low: Lower limit of its values.
        high: Upper limit of its values.
        log: Whether the logarithm is normally distributed.
    """

    name: str
    unit: str
    mean: float
    sd: float
    low: float
    high: float
    log: bool = False

    def at(self, level: int) -> tuple[float, bool]:
        """Return the value at a level, and whether it is held at a limit."""
        wanted = self.mean * self.sd**level if self.log else self.mean + level * self.sd
        value = min(max(wanted, self.low), self.high)
        return value, value != wanted

    def to_plain(self) -> dict[str, float]:
        """Return its entry in a ``--dimensions`` file."""
        return {"mean": self.mean, self.spread: self.sd, "min": self.low, "max": self.high}

    @property
    def spread(self) -> str:
        """The name of σ in a file."""
        return "factor" if self.log else "sd"


# Shape: σe over r of Table 6, a mixture of the uniform distributions of its four sizes. Size: ±3σ are the tiny and the
# large tumors of Table 6. Texture: η of Table 1. Intensity: μt - μp of Table 1 in a liver of 110 HU. Location: ±3σ are
# the shallowest and the deepest centers.
DEFAULTS: Mapping[str, Dimension] = MappingProxyType(
    {
        dimension.name: dimension
        for dimension in (
            Dimension(name="shape", unit="", mean=0.22, sd=0.058, low=0.0, high=1.0),
            Dimension(name="size", unit="mm", mean=22.6, sd=math.sqrt(2), low=3.0, high=200.0, log=True),
            Dimension(name="texture", unit="", mean=1.3, sd=0.115, low=1.0, high=20.0),
            Dimension(name="intensity", unit="HU", mean=-45.0, sd=20.0, low=-300.0, high=300.0),
            Dimension(name="location", unit="", mean=0.5, sd=1 / 6, low=0.0, high=1.0),
        )
    }
)


def level_name(level: int) -> str:
    """Return the name of a level, such as ``μ + 2σ``."""
    return "μ" if level == 0 else f"μ {'+' if level > 0 else '−'} {'' if abs(level) == 1 else abs(level)}σ"


def read_dimensions(path: Path | None, only: Sequence[str] = ()) -> dict[str, Dimension]:
    """Return the dimensions of a benchmark.

    Args:
        path: YAML file (``--dimensions``) that maps names to ``mean``, ``sd`` (``factor`` for the size), ``min`` and
            ``max``; whatever it leaves out is as in ``DEFAULTS``. None for the defaults.
        only: Names of the dimensions to vary; all by default.

    Returns:
        All dimensions, since every tumor needs the mean of each; those not to vary have σ = 0.

    Raises:
        ConfigError: The file cannot be read, or a name or number in it is wrong.
    """
    given = {} if path is None else _content(path)
    found = {name: _changed(default, given.get(name, {}), path) for name, default in DEFAULTS.items()}
    still = {name: replace(one, sd=1.0 if one.log else 0.0) for name, one in found.items() if only and name not in only}
    return {**found, **still}


def varied(dimensions: Mapping[str, Dimension]) -> list[str]:
    """Return the names of the dimensions that vary."""
    return [name for name, one in dimensions.items() if one.sd != (1.0 if one.log else 0.0)]


def plain_dimensions(dimensions: Mapping[str, Dimension]) -> dict[str, dict[str, float]]:
    """Return all dimensions as the content of a ``--dimensions`` file."""
    return {name: one.to_plain() for name, one in dimensions.items()}


def _content(path: Path) -> Mapping[str, Any]:
    try:
        content = read_yaml(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--dimensions {path} cannot be read ({error}): give a YAML file.") from error
    if not isinstance(content, Mapping) or not content:
        raise ConfigError(
            f"--dimensions {path} names no dimension: write for instance 'size: {{mean: 15, factor: 1.3}}'."
        )
    if unknown := [str(name) for name in content if name not in DEFAULTS]:
        raise ConfigError(f"--dimensions {path} names {unknown[0]!r}: known are {', '.join(DEFAULTS)}.")
    return content


def _changed(default: Dimension, given: Any, path: Path | None) -> Dimension:
    where = f"--dimensions {path}: {default.name}"
    names = {"mean": "mean", default.spread: "sd", "min": "low", "max": "high"}
    if not isinstance(given, Mapping) or not set(given) <= set(names):
        raise ConfigError(f"{where} is {given!r}: give some of {', '.join(names)}.")
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ConfigError(f"{where}.{name} is {value!r}: give a number.")
    numbers: dict[str, Any] = {names[name]: float(value) for name, value in given.items()}
    changed = replace(default, **numbers)
    if not default.low <= changed.low < changed.high <= default.high:
        raise ConfigError(
            f"{where} goes from {changed.low:g} to {changed.high:g}: give a min below the max, both within "
            f"{default.low:g} and {default.high:g}."
        )
    if not changed.low <= changed.mean <= changed.high:
        raise ConfigError(f"{where}.mean is {changed.mean:g}: give one between {changed.low:g} and {changed.high:g}.")
    if not changed.sd > (1 if default.log else 0):
        least = "1" if default.log else "0"
        raise ConfigError(f"{where}.{default.spread} is {changed.sd:g}: give a number above {least}.")
    return changed
