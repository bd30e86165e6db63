"""From configs to typed options: every key is a field, every field a key, and errors name the option."""

import subprocess
import sys
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest

from difftumor.errors import ConfigError
from difftumor.models.segmenters import SEGMENTERS
from difftumor.scans.organs import ORGANS, Organ
from difftumor.synthesis.distributions import Distribution
from difftumor.synthesis.sizes import SIZE_CHOICES
from stages.config.comparing import flatten
from stages.config.compose import CONFIGS, compose_config, compose_options
from stages.config.reading import Count, Hint, Positive, Share, read_options, to_plain
from stages.run.trainer import number_format
from tests.stages.builds import KINDS, options_of


@dataclass(frozen=True, kw_only=True)
class Room:
    width: Count
    height: Positive = 2
    share: Share | Literal["auto"] = "auto"
    door: Literal["left", "right"] = "left"
    sides: tuple[int, ...] = ()
    corner: Annotated[tuple[Positive, Positive] | None, Hint("two lengths, or null")] = None
    plan: Path | None = None
    open: bool = False


@dataclass(frozen=True, kw_only=True)
class House:
    room: Room


def read(**values):
    return read_options(House, {"room": {"width": 3, **values}}).room


def test_values_keep_their_types_and_lists_become_tuples():
    room = read(height=3, sides=[1, 2], corner=[1, 2.5], plan="a/b", share=0.5)
    assert (room.width, room.sides, room.corner, room.plan, room.share) == (3, (1, 2), (1, 2.5), Path("a/b"), 0.5)
    assert isinstance(room.height, int)  # artifacts and stored configs hold what was given


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"depth": 1}, r"Unknown option 'room\.depth': known ones are width, height"),
        ({"width": 0}, r"room\.width is 0: give a whole number, 1 or more"),
        ({"width": True}, r"room\.width is True"),
        ({"width": 1.0}, r"room\.width is 1\.0"),
        ({"width": None}, r"room\.width is None"),
        ({"height": 0}, r"room\.height is 0: give a number above 0"),
        ({"height": float("inf")}, r"room\.height is inf"),
        ({"share": 1.5}, r"room\.share is 1\.5: give a number from 0 to 1 or choose auto"),
        ({"door": "up"}, r"room\.door is 'up': choose left or right"),
        ({"door": True}, r"room\.door is True"),
        ({"sides": [1, "a"]}, r"room\.sides is \[1, 'a'\]: give a list, each item a whole number"),
        ({"corner": [1]}, r"room\.corner is \[1\]: give two lengths, or null"),
        ({"corner": 1}, r"room\.corner is 1"),
        ({"plan": ""}, r"room\.plan is '': give a path or null"),
        ({"open": 1}, r"room\.open is 1: choose true or false"),
    ],
)
def test_wrong_keys_and_values_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        read(**values)


def test_missing_sections_and_keys_are_named():
    with pytest.raises(ConfigError, match=r"lacks 'room'"):
        read_options(House, {})
    with pytest.raises(ConfigError, match=r"lacks 'room\.width'"):
        read_options(House, {"room": {}})
    with pytest.raises(ConfigError, match=r"room is 3: give a section of options"):
        read_options(House, {"room": 3})


@pytest.mark.parametrize("stage", KINDS)
def test_every_key_is_a_field_and_every_field_a_key(stage):
    choices = [[f"backbone={name}"] for name in SEGMENTERS] if stage == "segmentation" else [[]]
    for choice in choices:
        config = compose_config(stage, choice)
        options = options_of(config)
        optional = {"synthesis.sizes.late", "organ.wall_mm", *(("organ",) if stage == "autoencoder" else ())}
        assert _names(options) - optional == set(flatten(to_plain(config)))


def _names(options, prefix=""):
    names = set()
    for field in fields(options):
        value = getattr(options, field.name)
        section = is_dataclass(value) and not isinstance(value, Distribution)
        names |= _names(value, f"{prefix}{field.name}.") if section else {f"{prefix}{field.name}"}
    return names


@pytest.mark.parametrize("file", sorted((CONFIGS / "organ").glob("*.yaml")), ids=lambda file: file.stem)
def test_organ_configs_are_the_registered_organs(file):
    config = compose_config("autoencoder", [f"organ={file.stem}"])
    assert read_options(Organ, to_plain(config)["organ"], "organ") == ORGANS[file.stem]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.acelerator=cpu", r"Unknown option 'trainer\.acelerator': did you mean 'trainer\.accelerator'\?"),
        ("experiment=nope", r"There is no experiment 'nope': choose from demo"),
        ("trainer=nope", r"There is no trainer 'nope': choose from auto, cpu, ddp, gpu"),
        ("data.root", r"data\.root has no value: write data\.root=VALUE"),
        ("data.root=/data/my scans (1)", r"quote a value .*'data\.root=\"/data/my scans \(1\)\"'"),
        ("name=a=b", r"quote a value .*'name=\"a=b\"'"),
    ],
)
def test_bad_overrides_are_one_sentence(override, message):
    with pytest.raises(ConfigError, match=message) as error:
        compose_config("autoencoder", [override])
    assert "\n" not in str(error.value)


def test_sizes_and_generators_are_drawn_in_the_order_of_the_config():
    """Which tumors a seed gives depends on it."""
    synthesis = compose_options("segmentation", KINDS["segmentation"]).synthesis
    assert list(asdict(synthesis.sizes)) == ["early", "medium", "large", "tiny", "small", "mix", "late"]
    assert list(asdict(synthesis.generators)) == ["diffusion", "handcrafted", "copy_paste"]


def test_any_size_may_have_a_weight_and_one_left_out_has_none():
    overrides = ["+synthesis.sizes.late=0.5", "~synthesis.sizes.mix", "~synthesis.generators.handcrafted"]
    synthesis = compose_options("segmentation", KINDS["segmentation"], overrides).synthesis
    assert set(asdict(synthesis.sizes)) == set(SIZE_CHOICES)
    assert (synthesis.sizes.late, synthesis.sizes.mix, synthesis.generators.handcrafted) == (0.5, 0, 0)


@pytest.mark.parametrize("name", ["liver", "7", "0.5"])
def test_a_run_may_have_a_number_for_a_name(name):
    options = compose_options("autoencoder", KINDS["autoencoder"], [f"name={name}"])
    assert str(options.name) == name


@pytest.mark.parametrize(("accelerator", "gpu", "expected"), [
    ("auto", True, "16-mixed"), ("gpu", True, "16-mixed"), ("cpu", True, "32-true"), ("auto", False, "32-true"),
])  # fmt: skip
def test_automatic_precision_is_half_on_a_gpu(monkeypatch, accelerator, gpu, expected):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    trainer = compose_options("autoencoder", KINDS["autoencoder"], [f"trainer.accelerator={accelerator}"]).trainer
    assert (trainer.precision, number_format(trainer)) == ("auto", expected)


def test_composing_and_reading_options_loads_nothing_heavy():
    """A login node plans and submits in seconds."""
    probe = """
import sys
from stages.config.compose import compose_options
from stages.autoencoder.options import AutoencoderOptions
from stages.diffusion.options import DiffusionOptions
from stages.segmentation.options import SegmentationOptions
from stages.run.folder import RunFolder
kinds = {"autoencoder": AutoencoderOptions, "diffusion": DiffusionOptions, "segmentation": SegmentationOptions}
for stage, kind in kinds.items():
    compose_options(stage, kind, ["trainer=gpu"])  # there may be no GPU here, but where it runs
print([name for name in ("torch", "monai", "matplotlib", "pytorch_lightning") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
