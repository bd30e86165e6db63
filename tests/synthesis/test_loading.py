"""Where the diffusion model of a size is looked for, and what is said where there is none."""

import pytest

from difftumor.errors import ArtifactError, ConfigError
from difftumor.synthesis.loading import find_artifact
from difftumor.synthesis.records import SIZE_GROUPS, stage_of_size

STAGES = {"tiny": "early", "small": "early", "early": "early", "medium": "late", "large": "late", "late": "late"}


def test_stages_of_all_sizes():
    assert {size: stage_of_size(size) for size in SIZE_GROUPS} == STAGES
    with pytest.raises(ConfigError, match="'giant'"):
        stage_of_size("giant")


@pytest.mark.parametrize(("size", "stage"), STAGES.items())
def test_model_of_the_stage_is_found_or_its_command_named(tmp_path, size, stage):
    with pytest.raises(ArtifactError, match=rf"python -m stages\.diffusion organ=liver tumor_stage={stage},"):
        find_artifact(None, organ="liver", size=size, folder=tmp_path)
    (tmp_path / f"diffusion_liver_{stage}").mkdir()
    assert find_artifact(None, organ="liver", size=size, folder=tmp_path) == tmp_path / f"diffusion_liver_{stage}"
