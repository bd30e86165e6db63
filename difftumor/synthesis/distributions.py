"""Numbers that a user fixes, or gives as distributions to draw from."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from difftumor.errors import ConfigError
from difftumor.seeding import Key, numpy_generator

DistributionKind = Literal["fixed", "uniform", "normal", "integers", "choice"]
# A normal distribution ends here, in standard deviations, so that its limits can be checked.
_NORMAL_ENDS = 3.0
_FORMS = "a number, {uniform: [low, high]}, {normal: [mean, sd]}, {integers: [low, high]} or {choice: [a, b, …]}"


@dataclass(frozen=True)
class Distribution:
    """A fixed number, or how to draw one.

    Args:
        kind: ``fixed``, ``uniform`` (low, high), ``normal`` (mean, standard deviation; cut at 3 of them), ``integers``
            (low, high, both included) or ``choice`` (any of the values, with equal chance).
        values: Its numbers.

    Raises:
        ConfigError: The numbers do not fit the kind.
    """

    kind: DistributionKind
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        needed = {"fixed": 1, "choice": max(1, len(self.values))}.get(self.kind, 2)
        whole = all(float(value).is_integer() for value in self.values if math.isfinite(value))
        low, high = (self.values[0], self.values[-1]) if self.values else (0.0, 0.0)
        if (
            len(self.values) != needed
            or not all(map(math.isfinite, self.values))
            or (self.kind in ("uniform", "integers") and low > high)
            or (self.kind == "normal" and high < 0)
            or (self.kind == "integers" and not whole)
        ):
            raise ConfigError(f"{self.kind} {list(self.values)} is not a distribution: give {_FORMS}.")

    @classmethod
    def of(cls, value: Any, *, field: str) -> "Distribution":
        """Read what a user wrote.

        Args:
            value: A number, or a mapping from the kind to its numbers.
            field: Its name, for messages.

        Raises:
            ConfigError: It is neither.
        """
        try:
            if isinstance(value, Distribution):
                return value
            if isinstance(value, Mapping) and len(value) == 1:
                ((kind, numbers),) = value.items()
                if kind in get_args(DistributionKind) and kind != "fixed":
                    return cls(kind, tuple(_number(number) for number in numbers))
            return cls("fixed", (_number(value),))
        except (ConfigError, TypeError, ValueError) as error:
            raise ConfigError(f"{field} is {value!r}: give {_FORMS}.") from error

    @classmethod
    def within(cls, low: float, high: float, value: Any, *, field: str, whole: bool = False) -> "Distribution":
        """Read what a user wrote, of which all numbers must lie between two limits.

        Args:
            low: The lower one.
            high: The upper one.
            value: As in ``of``.
            field: Its name, for messages.
            whole: Whether only whole numbers are meant.

        Raises:
            ConfigError: It is neither a number nor a distribution, or other numbers can be drawn.
        """
        drawn = cls.of(value, field=field)
        if drawn.limits[0] < low or drawn.limits[1] > high:
            raise ConfigError(f"{field} is {drawn.to_plain()!r}: give numbers from {low:g} to {high:g}.")
        if whole and not drawn.whole:
            raise ConfigError(f"{field} is {drawn.to_plain()!r}: give whole numbers.")
        return drawn

    @property
    def limits(self) -> tuple[float, float]:
        """Lowest and highest number that can be drawn."""
        if self.kind == "normal":
            mean, sd = self.values
            return mean - _NORMAL_ENDS * sd, mean + _NORMAL_ENDS * sd
        return min(self.values), max(self.values)

    @property
    def whole(self) -> bool:
        """Whether only whole numbers can be drawn."""
        low, high = self.limits
        if self.kind in ("uniform", "normal"):
            return low == high and low.is_integer()
        return all(float(value).is_integer() for value in self.values)

    def draw(self, seed: int, *keys: Key) -> float:
        """Draw a number, which the seed and the keys alone decide."""
        if self.kind == "fixed":
            return self.values[0]
        generator = numpy_generator(seed, *keys)
        if self.kind == "uniform":
            return float(generator.uniform(self.values[0], self.values[1]))
        if self.kind == "integers":
            return float(generator.integers(int(self.values[0]), int(self.values[1]), endpoint=True))
        if self.kind == "choice":
            return float(generator.choice(self.values))
        low, high = self.limits
        return float(min(max(generator.normal(self.values[0], self.values[1]), low), high))

    def to_plain(self) -> Any:
        """Return what ``of`` reads."""
        return self.values[0] if self.kind == "fixed" else {self.kind: list(self.values)}


def fixed(value: float) -> Distribution:
    """Return a distribution that always gives one number."""
    return Distribution("fixed", (float(value),))


def uniform(low: float, high: float) -> Distribution:
    """Return a uniform distribution."""
    return Distribution("uniform", (float(low), float(high)))


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    return float(value)
