"""Stages started by srun, one process on each of two nodes: as good as one process, and never left hanging."""

import os
import re
import signal

import pytest
import torch

from difftumor.models.artifact_config import read_config
from stages.autoencoder.train import build as build_autoencoder
from stages.diffusion.train import build as build_diffusion
from stages.segmentation.train import build as build_segmentation
from tests.slurm.cluster import wait_until
from tests.stages.builds import composed, run
from tests.stages.conftest import TINY, tumor_cohort, untrained
from tests.stages.tumor_cohort import DIFFUSION, SEGMENTATION, UNET

pytestmark = pytest.mark.slurm
__all__ = ["tumor_cohort", "untrained"]  # fixtures

SRUN = ("srun", "--nodes=2", "--ntasks-per-node=1")
TEN_STEPS = {
    # The discriminators' batch norm sees its own part of a batch.
    "autoencoder": (*TINY, "discriminators.start_step=1000", "training.steps=10", "training.steps_per_epoch=5"),
    "diffusion": (*DIFFUSION, "training.steps=10", "training.steps_per_epoch=5"),
    "segmentation": (*SEGMENTATION, *UNET, "fold=null", "trainer.limit_train_batches=2", "training.epochs=5"),
}
BUILDS = {"autoencoder": build_autoencoder, "diffusion": build_diffusion, "segmentation": build_segmentation}


def places(stage, cohort, artifacts, folder):
    """Overrides that name the files of a run."""
    yield from (f"data.root={cohort}", f"runs_dir={folder}", f"checkpoints_dir={folder}", "name=it")
    yield f"artifact={folder}/artifact"
    if stage == "diffusion":
        yield f"autoencoder.artifact={artifacts}/autoencoder"
    if stage == "segmentation":
        yield from (f"synthesis.{size}_model={artifacts}/diffusion_liver_{size}" for size in ("early", "late"))


@pytest.mark.parametrize("stage", TEN_STEPS)
def test_two_nodes_train_as_one_process_with_the_joint_batch(slurm, stage, tumor_cohort, untrained, tmp_path):
    def options(name, batch):
        return [*TEN_STEPS[stage], *places(stage, tumor_cohort, untrained, tmp_path / name), f"data.batch_size={batch}"]

    command = ("python", "-m", f"stages.{stage}", *options("nodes", 1), "trainer.num_nodes=2")
    assert slurm.run(*SRUN, *command, timeout=300).stdout.count("Finished: ") == 1
    assert read_config(tmp_path / "nodes/artifact").training["world_size"] == 2
    run(composed(stage, options("joint", 2)), BUILDS[stage])
    nodes, joint = (
        torch.load(tmp_path / name / stage / "it/last.ckpt", weights_only=True) for name in ("nodes", "joint")
    )
    assert nodes["steps_done"] == joint["steps_done"] == 10
    for name, value in joint["state_dict"].items():
        # Biases before a norm have no gradient but rounding, of which Adam makes steps.
        if value.is_floating_point() and not (stage == "segmentation" and name.endswith("bias")):
            torch.testing.assert_close(nodes["state_dict"][name], value, rtol=1e-3, atol=5e-5, msg=name)


@pytest.mark.parametrize(
    ("fault", "options", "reason"),
    [
        # Its sockets are closed, as when the program crashes: the other process ends at once, by itself.
        (signal.SIGKILL, ("--kill-on-bad-exit=0", "trainer.timeout_minutes=30"), "(closed|reset) by peer"),
        # It does not answer, as when its node is gone: the other one ends, and srun the lost one.
        (signal.SIGSTOP, ("--kill-on-bad-exit=1", "trainer.timeout_minutes=0.1"), "Timed out waiting 6000ms"),
    ],
)
def test_a_lost_process_ends_the_job_with_an_error(slurm, fault, options, reason, tumor_cohort, tmp_path):
    words = [*TINY, *places("autoencoder", tumor_cohort, None, tmp_path), "trainer.num_nodes=2", "training.steps=9000",
             options[1]]  # fmt: skip
    process = f"echo $$ > {tmp_path}/pid$SLURM_PROCID; exec python -m stages.autoencoder {' '.join(words)}"
    script = f"{' '.join(SRUN)} {options[0]} bash -c '{process}'"
    job = slurm.submit("--nodes=2", "--ntasks-per-node=1", f"--output={tmp_path}/log", script=script)
    wait_until((tmp_path / "autoencoder/it/last.ckpt").exists, 120, "no epoch has passed")
    os.kill(int((tmp_path / "pid1").read_text()), fault)
    assert slurm.wait(job)["JobState"] == "FAILED"
    lost = rf"Error: Another process of {tmp_path}/autoencoder/it was lost at step \d+ \(.*{reason}"
    assert re.search(lost, (tmp_path / "log").read_text())
