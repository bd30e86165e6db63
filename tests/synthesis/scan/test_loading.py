"""Where the diffusion models of tumors are looked for, and what is said where there are none."""

import pytest

from difftumor.errors import ArtifactError
from difftumor.synthesis.scan.options import find_models


@pytest.mark.parametrize("group", ["early", "late"])
def test_the_model_of_a_size_group_is_found_or_its_command_named(tmp_path, group):
    with pytest.raises(ArtifactError, match=rf"python -m stages\.diffusion organ=liver tumor_stage={group},") as error:
        find_models(None, {group}, organ="liver", folder=tmp_path)
    assert "the generator handcrafted" in str(error.value)
    (tmp_path / f"diffusion_liver_{group}").mkdir()
    assert find_models(None, {group}, organ="liver", folder=tmp_path) == {group: tmp_path / f"diffusion_liver_{group}"}


def test_one_model_serves_both_size_groups_where_the_user_says_so(tmp_path):
    assert find_models(tmp_path, {"early", "late"}, organ="liver") == {"early": tmp_path, "late": tmp_path}
    assert find_models(None, frozenset(), organ="liver") == {}
