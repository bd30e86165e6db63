"""Stages run as processes of a study."""

import pytest

from difftumor.errors import TrainingError
from studies.jobs.commands import train


@pytest.mark.slow
def test_a_training_that_fails_is_told_in_a_sentence(capfd):
    message = r"^Stage 'diffusion' has failed \(exit status 1\): see its message above, then rerun this command\.$"
    with pytest.raises(TrainingError, match=message):
        train("diffusion", ["optimizer.lr=-1"])
    said = capfd.readouterr()
    assert said.out == "$ python -m stages.diffusion optimizer.lr=-1\n"
    assert said.err.startswith("Error: optimizer.lr is -1")
    assert said.err.count("\n") == 1
