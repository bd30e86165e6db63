"""What every choice of a group composes is what users have; ``python -m tests.composed`` writes it anew."""

import pytest
import torch
import yaml

from stages.config.comparing import flatten
from stages.config.compose import CONFIGS, compose_config
from stages.config.reading import read_options, to_plain
from tests.conftest import REPOSITORY
from tests.stages.builds import KINDS

COMPOSED = yaml.safe_load((REPOSITORY / "tests" / "data" / "composed_configs.yaml").read_text())


def composed(stage, *choices):
    values = to_plain(compose_config(stage, choices))
    if values["trainer"]["accelerator"] != "gpu" or torch.cuda.is_available():
        read_options(KINDS[stage], values)  # every key is one of a field, and every value of its type
    return flatten(values)


@pytest.mark.slow
@pytest.mark.parametrize("stage", COMPOSED)
def test_every_choice_composes_what_it_did(stage):
    choices = dict(COMPOSED[stage])
    usual = flatten(choices.pop(""))
    for choice, changes in choices.items():
        gone = {name for name in changes if name.startswith("~")}
        expected = {**usual, **changes}
        for name in gone:
            del expected[name], expected[name[1:]]
        assert composed(stage, choice) == expected, choice


@pytest.mark.parametrize("stage", COMPOSED)
def test_defaults_are_what_they_were(stage):
    assert composed(stage) == flatten(COMPOSED[stage][""])


@pytest.mark.parametrize("stage", COMPOSED)
def test_no_choice_is_left_out(stage):
    own = [file for folder in (CONFIGS / stage).iterdir() for file in folder.glob("*.yaml")]
    shared = [file for group in ("data", "trainer") for file in (CONFIGS / group).glob("*.yaml")]
    debug = {f"+debug={file.stem}" for file in (CONFIGS / "debug").glob("*.yaml")}
    assert debug | {f"{file.parent.name}={file.stem}" for file in [*own, *shared]} <= set(COMPOSED[stage])
