"""Stages started by srun, one process per node."""

import pytest

from difftumor.models.artifact_config import read_config
from tests.stages.conftest import TINY, cohort

pytestmark = pytest.mark.slurm
__all__ = ["cohort"]  # a fixture

ON_TWO_NODES = ("trainer.num_nodes=2", "trainer.devices=1", "trainer.strategy=ddp_find_unused_parameters_true")


def test_a_stage_runs_on_two_nodes(slurm, cohort, tmp_path):
    places = (f"data.root={cohort}", f"runs_dir={tmp_path}/runs", f"checkpoints_dir={tmp_path}")
    command = ("python", "-m", "stages.autoencoder", *TINY, *places, *ON_TWO_NODES, "training.steps=4")
    done = slurm.run("srun", "--nodes=2", "--ntasks-per-node=1", *command, timeout=300)
    assert done.stdout.count("Finished: ") == 1
    training = read_config(tmp_path / "autoencoder").training
    assert (training["world_size"], training["steps"]) == (2, 4)
