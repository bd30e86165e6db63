"""Whether an autoencoder is good enough for stage 2: measurements compared with thresholds, and the verdict in words.

docs/autoencoder.md justifies the thresholds.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace

from difftumor.errors import ConfigError
from difftumor.evaluation.autoencoder.fidelity import Fidelity

# Labels without a name are called this and their number.
UNNAMED = "label "
# Reasons told in the sentence; the card has all.
_TOLD = 3


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What the means over all scans must reach.

    Args:
        psnr_db: Least peak signal-to-noise ratio.
        ssim: Least structural similarity.
        mae_hu: Largest mean absolute error.
        bias_hu: Largest bias, up or down.
        edge_ratio_min: Least edge ratio.
        edge_ratio_max: Largest edge ratio.
        noise_ratio_min: Least noise ratio.
        noise_ratio_max: Largest noise ratio.
        structure_mae_hu: Largest mean absolute error inside a structure.
        structure_bias_hu: Largest bias inside a structure, up or down.
        structure_voxels: Structures with fewer voxels, over all scans, are not judged.

    Raises:
        ConfigError: One is negative or not finite.
    """

    psnr_db: float = 28.0
    ssim: float = 0.8
    mae_hu: float = 15.0
    bias_hu: float = 5.0
    edge_ratio_min: float = 0.8
    edge_ratio_max: float = 1.2
    noise_ratio_min: float = 0.25
    noise_ratio_max: float = 2.0
    structure_mae_hu: float = 15.0
    structure_bias_hu: float = 5.0
    structure_voxels: float = 500

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"Threshold {name} is {value}: give a number from 0 up.")

    def changed(self, settings: Sequence[str]) -> "Thresholds":
        """Return thresholds with changes such as ``"psnr_db=30"``.

        Raises:
            ConfigError: A name is unknown, or a value is not a number from 0 up.
        """
        known = [field.name for field in fields(self)]
        changes: dict[str, float] = {}
        for setting in settings:
            name, _, value = (part.strip() for part in setting.partition("="))
            if name not in known:
                raise ConfigError(f"Threshold {setting!r} is unknown: give NAME=VALUE, NAME one of {', '.join(known)}.")
            try:
                changes[name] = float(value)
            except ValueError as error:
                raise ConfigError(f"Threshold {setting!r} has no number: give, for instance, {name}=10.") from error
        return replace(self, **changes)


@dataclass(frozen=True, kw_only=True)
class Limit:
    """One thing to judge.

    Attributes:
        threshold: Field of `Thresholds`.
        measure: Field of `Fidelity`, or of `StructureError`.
        name: Its name in sentences.
        unit: Its unit; empty for a ratio.
        least: True if the threshold is a minimum, False if it is the largest absolute value.
        reason: Why the default is what it is.
        structure: Whether every structure is judged.
    """

    threshold: str
    measure: str
    name: str
    unit: str = ""
    least: bool
    reason: str
    structure: bool = False


LIMITS = (
    Limit(
        threshold="psnr_db",
        measure="psnr_db",
        name="PSNR",
        unit="dB",
        least=True,
        reason="28 dB of a window of 425 HU is a root mean square error of 17 HU, within the 10 to 20 HU of noise that "
        "abdominal CT has.",
    ),
    Limit(
        threshold="ssim",
        measure="ssim",
        name="structural similarity",
        least=True,
        reason="Halving the resolution of four real CTs left 0.65 to 0.76, a blur of 0.7 voxels 0.87 to 0.92.",
    ),
    Limit(
        threshold="mae_hu",
        measure="mae_hu",
        name="mean absolute error",
        unit="HU",
        least=False,
        reason="Losing all noise of 10 to 20 HU costs 8 to 16 HU; an early tumor differs from the liver by 20 to 60.",
    ),
    Limit(
        threshold="bias_hu",
        measure="bias_hu",
        name="bias",
        unit="HU",
        least=False,
        reason="A quarter of the 20 HU by which a faint tumor differs from the liver.",
    ),
    Limit(
        threshold="edge_ratio_min",
        measure="edge_ratio",
        name="edge ratio",
        least=True,
        reason="A Gaussian blur of 0.7 voxels left 0.80 to 0.85 in five real CTs, one of a voxel 0.68 to 0.75.",
    ),
    Limit(
        threshold="edge_ratio_max",
        measure="edge_ratio",
        name="edge ratio",
        least=False,
        reason="Sharpening by half of what a blur of a voxel takes gave 1.1 to 1.2 in five real CTs.",
    ),
    Limit(
        threshold="noise_ratio_min",
        measure="noise_ratio",
        name="noise ratio",
        least=True,
        reason="A quarter of the power is half of the standard deviation; with less, tumors are smoother than the "
        "organ around them.",
    ),
    Limit(
        threshold="noise_ratio_max",
        measure="noise_ratio",
        name="noise ratio",
        least=False,
        reason="Twice the power is as if another scan's noise were added.",
    ),
    Limit(
        threshold="structure_mae_hu",
        measure="mae_hu",
        name="mean absolute error",
        unit="HU",
        least=False,
        structure=True,
        reason="As for the whole: noise that is lost costs up to 16 HU, a tumor begins at 20.",
    ),
    Limit(
        threshold="structure_bias_hu",
        measure="bias_hu",
        name="bias",
        unit="HU",
        least=False,
        structure=True,
        reason="As for the whole; an organ that is shifted against its tumor changes the tumor's contrast.",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Check:
    """One measurement compared with its limit.

    Attributes:
        limit: What is judged.
        structure: The structure; None for the body.
        value: The measurement.
        bound: The threshold.
        passed: Whether the value is within the threshold; None if it could not be measured.
    """

    limit: Limit
    structure: str | None
    value: float
    bound: float
    passed: bool | None

    @property
    def sentence(self) -> str:
        """In words, such as "the bias in the liver is 8 HU, beyond ±5 HU"."""
        where = "" if self.structure is None else f" in {spoken(self.structure)}"
        if self.passed is None:
            return f"the {self.limit.name}{where} could not be measured"
        below, above, sign = ("within", "beyond", "±") if self.limit.measure == "bias_hu" else ("below", "above", "")
        side = above if self.passed is self.limit.least else below
        value, bound = self._numbers()
        return f"the {self.limit.name}{where} is {value}, {side} {sign}{bound}"

    def _numbers(self) -> tuple[str, str]:
        """Value and bound with three digits, or with as many as tell them apart."""
        for digits in range(3, 18):
            value, bound = (f"{number:.{digits}g} {self.limit.unit}".strip() for number in (self.value, self.bound))
            if value != bound or self.value == self.bound:
                break
        return value.replace("-", "−"), bound


@dataclass(frozen=True)
class CardVerdict:
    """All checks and their outcome.

    Attributes:
        checks: In the order of `LIMITS`; structures by name.
    """

    checks: tuple[Check, ...]

    @property
    def good_enough(self) -> bool:
        """Whether no check failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[str, ...]:
        """What failed, in words."""
        return tuple(check.sentence for check in self.checks if check.passed is False)

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """What could not be measured and so was not judged, in words, without repeats."""
        return tuple(dict.fromkeys(check.sentence for check in self.checks if check.passed is None))

    @property
    def sentence(self) -> str:
        """The verdict in one sentence."""
        return f"Good enough for stage 2: {'yes' if self.good_enough else 'no'}, because {self.reasons}."

    @property
    def reasons(self) -> str:
        """The first failures and the number of others, or that there are none."""
        if self.good_enough:
            return "; ".join(("everything measured is within its threshold", *self.unmeasured))
        told, more = self.failures[:_TOLD], len(self.failures) - _TOLD
        return "; ".join(told) + (f"; and {more} more" if more > 0 else "")


def outcome(checks: Sequence[Check]) -> bool | None:
    """Return whether all checks passed; None if nothing could be measured."""
    results = [check.passed for check in checks if check.passed is not None]
    return all(results) if results else None


def judge(overall: Fidelity, thresholds: Thresholds) -> CardVerdict:
    """Compare the fidelity over all scans with thresholds."""
    return CardVerdict(tuple(_checks(overall, thresholds)))


def spoken(structure: str) -> str:
    """Return a structure's name for a sentence: "the right kidney" for "kidney_right"."""
    words = structure.replace("_", " ").split()
    if len(words) > 1 and words[-1] in ("left", "right"):
        words = [words[-1], *words[:-1]]
    name = " ".join(words)
    return name if name.startswith(UNNAMED) else f"the {name}"


def judged_structures(overall: Fidelity, thresholds: Thresholds) -> tuple[str, ...]:
    """Return the structures to judge: large enough, and named unless none is.

    Label maps of whole bodies hold ribs and gut besides the named organs.
    """
    named = [name for name in overall.structures if not name.startswith(UNNAMED)]
    large = max(thresholds.structure_voxels, 1)
    return tuple(name for name in named or overall.structures if overall.structures[name].voxels >= large)


def _checks(overall: Fidelity, thresholds: Thresholds) -> Iterator[Check]:
    structures = judged_structures(overall, thresholds)
    for limit in LIMITS:
        for name in structures if limit.structure else (None,):
            measured = overall if name is None else overall.structures[name]
            yield _check(limit, name, getattr(measured, limit.measure), getattr(thresholds, limit.threshold))


def _check(limit: Limit, structure: str | None, value: float, bound: float) -> Check:
    passed = None if math.isnan(value) else value >= bound if limit.least else abs(value) <= bound
    return Check(limit=limit, structure=structure, value=value, bound=bound, passed=passed)
