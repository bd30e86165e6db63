"""What every choice of a group composes is what users have; tests/data/composed_configs.yaml holds it."""

import pytest
import yaml
from omegaconf import OmegaConf

from stages.run.entry import CONFIGS, compose_config
from stages.run.folder import flatten
from tests.conftest import REPOSITORY

COMPOSED = yaml.safe_load((REPOSITORY / "tests" / "data" / "composed_configs.yaml").read_text())


def composed(stage, *choices):
    return flatten(OmegaConf.to_container(compose_config(stage, choices), resolve=True))


@pytest.mark.parametrize("stage", COMPOSED)
def test_every_choice_composes_what_it_did(stage):
    choices = dict(COMPOSED[stage])
    usual = flatten(choices.pop(""))
    assert composed(stage) == usual
    for choice, changes in choices.items():
        gone = {name for name in changes if name.startswith("~")}
        expected = {**usual, **changes}
        for name in gone:
            del expected[name], expected[name[1:]]
        assert composed(stage, choice) == expected, choice


@pytest.mark.parametrize("stage", COMPOSED)
def test_no_choice_is_left_out(stage):
    own = [file for folder in (CONFIGS / stage).iterdir() for file in folder.glob("*.yaml")]
    shared = [file for group in ("data", "trainer") for file in (CONFIGS / group).glob("*.yaml")]
    debug = {f"+debug={file.stem}" for file in (CONFIGS / "debug").glob("*.yaml")}
    assert debug | {f"{file.parent.name}={file.stem}" for file in [*own, *shared]} <= set(COMPOSED[stage])
