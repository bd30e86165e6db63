"""Every key of stage 1's configs is read by something, whatever is composed."""

import pytest

from difftumor.errors import ConfigError
from stages.autoencoder import build
from stages.entry import CONFIGS
from stages.run import run_stage
from stages.settings import Settings

EXPERIMENTS = [f"experiment={file.stem}" for file in (CONFIGS / "autoencoder" / "experiment").glob("*.yaml")]
DEBUGS = [f"+debug={file.stem}" for file in (CONFIGS / "debug").glob("*.yaml")]


def _read_all(config) -> Settings:
    """Run everything up to training."""
    read: list[Settings] = []

    class Enough(Exception):  # noqa: N818
        pass

    def build_and_stop(settings):
        build(settings)
        read.append(settings)
        raise Enough

    with pytest.raises(Enough):
        run_stage(stage="autoencoder", config=config, build=build_and_stop)
    return read[0]


@pytest.mark.parametrize("choice", ["seed=0", *EXPERIMENTS, *DEBUGS])
def test_every_key_is_read(tiny_config, choice):
    assert _read_all(tiny_config(choice)).unread() == []


def test_an_added_key_that_nothing_reads_stops_the_run_before_anything_is_written(tiny_config, tmp_path):
    with pytest.raises(ConfigError, match=r"'data\.bogus'"):
        run_stage(stage="autoencoder", config=tiny_config("+data.bogus=1"), build=build)
    assert not list(tmp_path.iterdir())
