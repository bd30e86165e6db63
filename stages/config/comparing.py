"""Comparing configs: which options decide what a run computes, and what versions without an option did."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import yaml

# Options that change where or how fast a run goes, and not what it computes.
NEUTRAL = (
    "name", "stage", "fresh", "runs_dir", "checkpoints_dir", "artifact", "data.num_workers", "data.cache_rate",
    "data.cache_dir", "data.accept_hu", "organ.mean_hu", "autoencoder.on_overlap", "synthesis.on_overlap",
    "trainer.accelerator", "trainer.strategy", "trainer.timeout_minutes", "trainer.max_epochs",
    "trainer.validate_every_n_epochs", "trainer.checkpoint_every_n_epochs", "trainer.on_damage",
    "trainer.log_every_n_steps", "trainer.profiler", "trainer.progress_bar",
)  # fmt: skip

# Options that earlier versions lack, with the value that says what those did: a run started without one has it.
EARLIER: Mapping[str, Any] = {
    "augmentation.rotation_probability": 0.0,
    "codebook.updates_per_step": 1,
    "lesions.early_includes_limit": True,
    "optimizer.gamma": 0.1,
    "optimizer.milestones": [],
    "perceptual.reduction": "mean",
    "synthesis.generators.copy_paste": 0.0,
    # In stage 1, which held out a share of the patients.
    "fold": None,
    "folds.count": 5,
    "folds.seed": 0,
    "synthesis.scale_texture": False,
    "training.accumulate": 1,
    "loss.smooth_nr": 1e-5,
    "loss.smooth_dr": 1e-5,
    "synthesis.center": 0.0,
    "data.positive_share": None,
    "augmentation.scale": 0.1,
    "augmentation.scale_probability": 0.0,
    "augmentation.flip_probability": 0.0,
    "more_organs": [],
    "training.patience": None,
}


def differences(
    stored: Mapping[str, Any],
    given: Mapping[str, Any],
    *,
    neutral: Collection[str] = (),
    only_whether: Collection[str] = (),
) -> list[tuple[str, Any, Any]]:
    """Return the options that differ between two resolved configs and that change what is computed.

    Args:
        stored: The config of a run, perhaps of an earlier version.
        given: The config of this call.
        neutral: Options of the stage that change no result, besides the common ones.
        only_whether: Options of the stage of which all values but null give the same results.

    Returns:
        (name, stored value, given value) of each.
    """
    # Through YAML once, so that both sides went the same way.
    today = flatten(yaml.safe_load(yaml.safe_dump(dict(given))))
    before = with_earlier(flatten(stored), today)
    names = [name for name in {**before, **today} if name not in {*NEUTRAL, *neutral}]
    pairs = [(name, before.get(name), today.get(name)) for name in names]
    alike = {name for name, one, other in pairs if name in only_whether and None not in (one, other)}
    return [(name, one, other) for name, one, other in pairs if one != other and name not in alike]


def with_earlier(stored: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return stored options with those of ``names`` that their version lacked and did in a known way."""
    return {**{name: EARLIER[name] for name in names if name in EARLIER}, **stored}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat
