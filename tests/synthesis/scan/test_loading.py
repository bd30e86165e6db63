"""Where the diffusion models of tumors are looked for, and what is said where there are none."""

import pytest

from difftumor.errors import ArtifactError, ConfigError
from difftumor.synthesis.scan.loading import find_models
from difftumor.synthesis.sizes import SIZE_GROUPS, stage_of_size, stages_of_size

STAGES = {"tiny": "early", "small": "early", "early": "early", "medium": "late", "large": "late", "late": "late"}


def test_stages_of_all_sizes():
    assert {size: stages_of_size(size) for size in SIZE_GROUPS} == {
        **{size: {stage} for size, stage in STAGES.items()},
        "mix": {"early", "late"},
    }
    assert {size: stage_of_size(size) for size in STAGES} == STAGES
    with pytest.raises(ConfigError, match="'mix' has tumors of both stages"):
        stage_of_size("mix")
    with pytest.raises(ConfigError, match="'giant'"):
        stage_of_size("giant")


@pytest.mark.parametrize("stage", ["early", "late"])
def test_model_of_the_stage_is_found_or_its_command_named(tmp_path, stage):
    with pytest.raises(ArtifactError, match=rf"python -m stages\.diffusion organ=liver tumor_stage={stage},") as error:
        find_models(None, {stage}, organ="liver", folder=tmp_path)
    assert "--generator handcrafted" in str(error.value)
    (tmp_path / f"diffusion_liver_{stage}").mkdir()
    assert find_models(None, {stage}, organ="liver", folder=tmp_path) == {stage: tmp_path / f"diffusion_liver_{stage}"}


def test_one_model_serves_both_stages_where_the_user_says_so(tmp_path):
    assert find_models(tmp_path, {"early", "late"}, organ="liver") == {"early": tmp_path, "late": tmp_path}
    assert find_models(None, frozenset(), organ="liver") == {}
