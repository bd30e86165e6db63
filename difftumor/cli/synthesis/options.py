"""Which scan and which tumors ``difftumor synthesize`` is asked for: its options, and how they go together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difftumor.cli.options import parse_numbers
from difftumor.errors import ConfigError

if TYPE_CHECKING:
    from difftumor.synthesis.scan.inputs import ScanInputs
    from difftumor.synthesis.spec import TumorSpec


@dataclass(frozen=True)
class Files:
    """The options that name a scan's files."""

    ct: Path | None
    organ_mask: Path | None
    labels: Path | None
    organ_label: str | None
    convention: str | None
    segments: Path | None

    def inputs(self, organ: str) -> ScanInputs:
        """Return the files of the scan.

        Raises:
            ConfigError: One is missing, or two options say the same.
        """
        from difftumor.synthesis.scan.inputs import ScanInputs

        if self.ct is None:
            raise ConfigError("Give a CT with --ct, or many scans with --cases.")
        if (self.organ_mask is None) == (self.labels is None):
            raise ConfigError("Give the organ as either --organ-mask or --labels with --organ-label.")
        mask = self.organ_mask or self.labels
        assert mask is not None
        numbers, tumors = self.numbers(), tuple[int, ...]()
        if self.convention is not None:
            from difftumor.scans.organs import get_convention, get_organ, resolve_labels

            named = resolve_labels(get_convention(self.convention), get_organ(organ))
            numbers, tumors = named.organ, named.tumor
        if self.labels is not None and not numbers:
            raise ConfigError(
                f"--labels {self.labels} needs --organ-label or --convention: say which number is the {organ}."
            )
        return ScanInputs(
            ct=self.ct, organ_masks=(mask,), organ_labels=numbers, tumor_labels=tumors, segments=self.segments
        )

    def replacing(self, recorded: ScanInputs) -> ScanInputs:
        """Return the files of a record, but for those that are named here because they have moved.

        Raises:
            ConfigError: A mask is named in two ways, or one for a record of several.
        """
        mask = self.organ_mask or self.labels
        if self.organ_mask and self.labels:
            raise ConfigError("Give the organ as either --organ-mask or --labels.")
        if self.convention is not None:
            raise ConfigError("--convention has no meaning beside --replay: the record says which labels it is.")
        if mask is not None and len(recorded.organ_masks) > 1:
            raise ConfigError(
                f"The record was made from {len(recorded.organ_masks)} masks: put them where it says, and name none."
            )
        return replace(
            recorded,
            ct=self.ct or recorded.ct,
            organ_masks=recorded.organ_masks if mask is None else (mask,),
            organ_labels=self.numbers() or recorded.organ_labels,
            segments=self.segments or recorded.segments,
        )

    def numbers(self) -> tuple[int, ...]:
        """Return the organ's numbers; none where none are given.

        Raises:
            ConfigError: They are no numbers from 1 up, or said in two ways.
        """
        if self.organ_label is None:
            return ()
        if self.convention is not None:
            raise ConfigError("--organ-label and --convention say the same in two ways: give one of them.")
        numbers = parse_numbers(self.organ_label, int, option="--organ-label", counts=range(1, 33))
        if min(numbers) < 1:
            raise ConfigError(f"--organ-label {self.organ_label!r} is not understood: give numbers from 1 up.")
        return numbers


def specs_of(tumors: Path | None, short: dict[str, Any]) -> tuple[tuple[TumorSpec, ...], int | None]:
    """Return what tumors are wanted, and the seed that a file states.

    Args:
        tumors: The ``--tumors`` file; None for the short options.
        short: The short options by name; None where one is not given.

    Raises:
        ConfigError: The file or an option is wrong, or both are given.
    """
    from difftumor.synthesis.spec import TumorSpec, read_plan

    if tumors is not None:
        refuse(short, beside="--tumors")
        plan = read_plan(tumors)
        return plan.tumors, plan.seed
    given = {name: value for name, value in short.items() if value is not None}
    if "radius_mm" in given:
        if "size" in given:
            raise ConfigError("--size and --radius-mm say the same in two ways: give one of them.")
        if not given["radius_mm"] > 0:
            raise ConfigError(f"--radius-mm is {given['radius_mm']}: give a number above 0.")
        given["diameter_mm"] = 2 * given.pop("radius_mm")
    return (TumorSpec.from_dict(given, where="The options"),), None


def refuse(options: dict[str, Any], *, beside: str) -> None:
    """Refuse options that are given where they have no meaning.

    Raises:
        ConfigError: One is.
    """
    given = next((name for name, value in options.items() if value is not None), None)
    if given is not None:
        option = {"kind": "sampler"}.get(given, given).replace("_", "-")
        raise ConfigError(f"--{option} has no meaning beside {beside}: do without it.")
