"""The cluster that tests run on does what they rely on."""

import pytest

pytestmark = pytest.mark.slurm


def test_srun_runs_on_both_nodes(slurm):
    printed = slurm.run("srun", "-N2", "-n2", "bash", "-c", "echo $SLURM_PROCID $SLURMD_NODENAME").stdout
    assert sorted(printed.split("\n")[:2]) == ["0 n1", "1 n2"]


def test_exit_codes_are_honest_and_dependencies_hold(slurm, tmp_path):
    fine = slurm.submit("--gpus-per-node=2", f"--output={tmp_path}/out", script="echo $CUDA_VISIBLE_DEVICES")
    after = slurm.submit("--output=/dev/null", f"--dependency=afterok:{fine}", script="true")
    assert slurm.wait(fine)["ExitCode"] == "0:0"
    assert (tmp_path / "out").read_text().strip() == "0,1"
    assert slurm.wait(after)["JobState"] == "COMPLETED"
    broken = slurm.submit("--output=/dev/null", script="exit 3")
    never = slurm.submit("--output=/dev/null", f"--dependency=afterok:{broken}", "--kill-on-invalid-dep=yes",
                         script=f"touch {tmp_path}/started")  # fmt: skip
    assert slurm.wait(broken)["ExitCode"] == "3:0"
    assert slurm.wait(never)["JobState"] == "CANCELLED"
    assert not (tmp_path / "started").exists()


def test_what_is_preempted_is_requeued(slurm):
    script = '[ -n "$SLURM_RESTART_COUNT" ] || sleep 60'
    low = slurm.submit("-N2", "--exclusive", "--requeue", "--output=/dev/null", script=script)
    slurm.wait(low, "RUNNING")
    high = slurm.submit("-N2", "--exclusive", "--partition=high", "--output=/dev/null", script="true")
    assert slurm.wait(high)["JobState"] == "COMPLETED"
    ended = slurm.wait(low)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1")


def test_the_job_of_a_lost_node_goes_on_elsewhere(slurm):
    job = slurm.submit("--requeue", "--output=/dev/null", script="sleep $((SLURM_RESTART_COUNT ? 0 : 60))")
    node = slurm.wait(job, "RUNNING")["NodeList"]
    slurm.set_node(node, "down")
    ended = slurm.wait(job)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1")
    assert ended["NodeList"] != node
