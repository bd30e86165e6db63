"""Stages run as processes of a study."""

import pytest

from difftumor.errors import TrainingError
from studies.jobs.commands import train


@pytest.mark.slow
def test_a_training_that_fails_is_told_in_a_sentence(capfd):
    with pytest.raises(TrainingError, match=r"^Stage 'diffusion' has failed \(exit status 1\): .* rerun this command\.$"):
        train("diffusion", ["optimizer.lr=-1"])
    said = capfd.readouterr()
    assert said.out == "$ python -m stages.diffusion optimizer.lr=-1\n"
    assert said.err.startswith("Error: optimizer.lr is -1")
    assert said.err.count("\n") == 1
