"""Every key of every stage's configs is read by something, whatever is composed."""

import pytest

from difftumor.errors import ConfigError
from stages.autoencoder import train as autoencoder
from stages.diffusion import train as diffusion
from stages.run.entry import CONFIGS
from stages.run.run import run_stage
from stages.segmentation import train as segmentation

BUILDS = {"autoencoder": autoencoder.build, "diffusion": diffusion.build, "segmentation": segmentation.build}
FIXTURES = {"autoencoder": "tiny_config", "diffusion": "tiny_diffusion", "segmentation": "tiny_segmentation"}
MORE = {"diffusion": ["tumor_stage=late"], "segmentation": ["tumors=real"]}
DEBUGS = [f"+debug={file.stem}" for file in sorted((CONFIGS / "debug").glob("*.yaml"))]
CHOICES = [
    (stage, choice)
    for stage in BUILDS
    for choice in [
        "seed=0",
        *MORE.get(stage, []),
        *(
            f"{group}={file.stem}"
            for group in ("experiment", "ablation")
            for file in sorted((CONFIGS / stage / group).glob("*.yaml"))
        ),
        *DEBUGS,
    ]
]


class Enough(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize(("stage", "choice"), CHOICES)
def test_every_key_is_read(request, stage, choice):
    compose = request.getfixturevalue(FIXTURES[stage])
    read = []

    def build_and_stop(settings):
        BUILDS[stage](settings)
        read.append(settings)
        raise Enough

    with pytest.raises(Enough):
        run_stage(stage=stage, config=compose(choice), build=build_and_stop)
    assert read[0].unread() == []


@pytest.mark.parametrize("stage", BUILDS)
def test_an_added_key_that_nothing_reads_stops_the_run_before_anything_is_written(request, tmp_path, stage):
    config = request.getfixturevalue(FIXTURES[stage])("+data.bogus=1")
    with pytest.raises(ConfigError, match=r"'data\.bogus'"):
        run_stage(stage=stage, config=config, build=BUILDS[stage])
    assert not list(tmp_path.iterdir())
