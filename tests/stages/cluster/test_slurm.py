"""What SLURM is asked for, and what its answers become; a stand-in takes the place of its programs."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from difftumor.errors import ConfigError
from stages.cluster import task
from stages.cluster.checkout import Checkout
from stages.cluster.jobs import Job, Submitted
from stages.cluster.options import read_cluster
from stages.cluster.status import job_states, last_error
from stages.cluster.submission import latest, read_submissions, submit
from tests.conftest import REPOSITORY
from tests.stages.cluster.conftest import SBATCH


def slurm(*words):
    return read_cluster(["cluster=slurm", *words])[0]


def stage(name, *needs, **options):
    return Job(name=name, module="stages.diffusion", words=(f"name={name}",), needs=needs, **options)


def test_a_job_gets_what_the_cluster_says(fake, tmp_path):
    cluster = slurm(
        "cluster.partition=gpu", "cluster.account=lab", "cluster.time=2d", "cluster.nodes=2", "cluster.gpus_per_node=4",
        "cluster.cpus=6", "cluster.setup=[module load cuda]", "cluster.environment={A: b c}",
        "+cluster.more.mail_type=END",
    )  # fmt: skip
    (sent,) = submit([stage("one")], cluster, folder=tmp_path)
    assert (sent.name, sent.id) == ("one", "101")
    asked = fake.options(101)
    expected = {
        "partition": "gpu", "account": "lab", "time": "2880", "nodes": "2", "ntasks-per-node": "4",
        "gpus-per-node": "4", "cpus-per-task": "6", "mem": "32G", "mail-type": "END", "job-name": "one",
        "kill-on-invalid-dep": "yes", "signal": "USR2@120", "requeue": "", "open-mode": "append",
    }  # fmt: skip
    assert {name: asked.get(name) for name in expected} == expected
    assert "wckey" not in asked
    script = fake.script(101)
    assert script.index("module load cuda") < script.index("export A='b c'") < script.index("srun")
    assert "--cpus-per-task=6 --kill-on-bad-exit=1" in script  # srun does not inherit the first
    assert f"export PYTHONPATH={REPOSITORY}" in script
    assert f"{sys.executable} -P -u -m submitit" in script


def test_what_is_no_training_is_one_process(fake, tmp_path):
    cluster = slurm("cluster.nodes=2", "cluster.gpus_per_node=4", "cluster.partition=gpu", "cluster.cpu_partition=cpu",
                    "+cluster.more.gres=gpu:a100:4")  # fmt: skip
    jobs = [Job(name="judge", module="difftumor", words=("info",)), Job(name="table", module="x", words=(), gpu=False)]
    submit(jobs, cluster, folder=tmp_path)
    for job, partition, gres in ((101, "gpu", "gpu:a100:1"), (102, "cpu", None)):
        asked = fake.options(job)
        found = (asked["nodes"], asked["ntasks-per-node"], asked["partition"], asked.get("gres"))
        assert found == ("1", "1", partition, gres)
        assert "gpus-per-node" not in asked


def test_dependencies_are_slurms(fake, tmp_path):
    jobs = [stage("a"), stage("b", "a", "early"), stage("c", "a", "b")]
    submit(jobs, slurm(), folder=tmp_path, queued={"early": "77"})
    assert [fake.options(number).get("dependency") for number in (101, 102, 103)] == [
        None, "afterok:101:77", "afterok:101:102",
    ]  # fmt: skip


def test_at_once_holds_for_chains_too(fake, tmp_path):
    submit([stage("a"), stage("b", "a"), stage("c"), stage("d", "a")], slurm("cluster.at_once=2"), folder=tmp_path)
    assert fake.options(103)["dependency"] == "afterany:101"
    assert fake.options(104)["dependency"] == "afterok:101,afterany:102"


def test_jobs_that_are_alike_are_an_array(fake, tmp_path):
    sent = submit([stage("a"), stage("b"), stage("c")], slurm("cluster.at_once=2"), folder=tmp_path)
    assert [job.id for job in sent] == ["101_0", "101_1", "101_2"]
    assert fake.options(101)["array"] == "0-2%2"
    assert len({job.log for job in sent}) == 3
    assert not (fake.folder / "script.102").exists()


def test_a_record_holds_what_was_submitted(fake, tmp_path):
    sent = submit([stage("a")], slurm(), folder=tmp_path)
    again = submit([stage("a"), stage("b", "a")], slurm(), folder=tmp_path)
    before, after = read_submissions(tmp_path)
    assert (before.jobs, after.jobs) == (sent, again)
    assert latest([before, after]) == {"a": again[0], "b": again[1]}
    record = json.loads(after.file.read_text())
    assert record["jobs"][1]["needs"] == ["a"]
    assert record["cluster"]["kind"] == "slurm"
    assert set(record["checkout"]) == {"commit", "changes", "dirty"}


def test_submitting_from_a_job_hides_that_job(fake, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    monkeypatch.setenv("SLURM_CONF", "/here")
    monkeypatch.setenv("SBATCH_ACCOUNT", "lab")
    submit([stage("a")], slurm(), folder=tmp_path)
    lines = (fake.folder / "environment.101").read_text().splitlines()
    seen = dict(line.split("=", 1) for line in lines if "=" in line)
    assert "SLURM_JOB_ID" not in seen
    assert (seen["SLURM_CONF"], seen["SBATCH_ACCOUNT"]) == ("/here", "lab")
    assert os.environ["SLURM_JOB_ID"] == "5"


REFUSALS = {
    "sbatch: error: invalid partition specified: nope\nsbatch: error: Batch job submission failed: Invalid partition "
    "name specified\n": r"SLURM has no partition 'nope': set cluster\.partition to gpu or long\.",
    "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)\n":
        r"SLURM's controller does not answer .*connect failure\)\): try again later",
    "sbatch: unrecognized option '--colour=red'\nTry \"sbatch --help\" for more information\n":
        r"SLURM refuses the job \(unrecognized option '--colour=red'\): correct --colour in cluster\.more\.",
    "sbatch: error: Batch job submission failed: Requested node configuration is not available\n":
        r"SLURM refuses the job \(Requested node configuration is not available\)",
}  # fmt: skip


@pytest.mark.parametrize(("text", "sentence"), REFUSALS.items())
def test_a_refusal_is_one_sentence_and_leaves_nothing(fake, tmp_path, text, sentence, capsys):
    fake.refuse(text)
    with pytest.raises(ConfigError, match=sentence) as caught:
        submit([stage("a")], slurm("cluster.partition=nope"), folder=tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "out" / "submissions").iterdir()) == []
    assert capsys.readouterr().err == ""


def test_what_was_submitted_before_a_refusal_is_canceled(fake, tmp_path):
    fake.refuse("sbatch: error: Batch job submission failed: Job violates accounting policy", after=2)
    with pytest.raises(ConfigError, match="accounting policy"):
        submit([stage("a"), stage("b", "a"), stage("c", "b")], slurm(), folder=tmp_path)
    assert fake.canceled == ["101", "102"]
    assert read_submissions(tmp_path) == ()


@pytest.mark.parametrize("program", ["sbatch", "srun"])
def test_a_machine_without_slurm_is_named(fake, tmp_path, program):
    (fake.folder / "bin" / program).unlink()
    with pytest.raises(ConfigError, match=rf"There is no {program} here: submit on a node of the cluster"):
        submit([stage("a")], slurm(), folder=tmp_path / "out")


@pytest.mark.parametrize(("kind", "id_"), [("slurm", "local-x-0"), ("local", "77")])
def test_jobs_do_not_wait_for_another_scheduler(fake, tmp_path, kind, id_):
    cluster, _ = read_cluster([f"cluster={kind}"])
    with pytest.raises(ConfigError, match=rf"Job b needs a, which was not submitted to cluster={kind}"):
        submit([stage("b", "a")], cluster, folder=tmp_path, queued={"a": id_})


def test_a_place_that_is_no_folder_is_named(fake, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="lies inside the file"):
        submit([stage("a")], slurm(), folder=tmp_path / "file")
    assert not (fake.folder / "number").exists()


def sent(tmp_path, number, name=None):
    return Submitted(name=name or f"job{number}", id=number, log=tmp_path / f"{number}_0_log.out",
                     errors=tmp_path / f"{number}_0_log.err")  # fmt: skip


def test_states_are_what_slurm_says(fake, tmp_path):
    fake.queue(
        ("1", "RUNNING", "n1", "1-02:03:04", "0", "None"),
        ("2", "PENDING", "", "0:00", "0", "Dependency"),
        ("3", "PENDING", "", "0:00", "2", "BeginTime"),
        ("4_1", "COMPLETED", "n2", "5:00", "0", "None"),
        ("5", "FAILED", "n1", "0:09", "0", "NonZeroExitCode"),
        ("6", "CANCELLED", "", "0:00", "0", "DependencyNeverSatisfied"),
    )
    (tmp_path / "5_0_log.err").write_text("submitit INFO x\nError: data.root is not set.\nsrun: error: n1: task 0\n")
    (fake.folder / "accounting").write_text(
        "JobID|State|NodeList|ElapsedRaw\n7|TIMEOUT|n1|60\n8|CANCELLED by 0|n1|3\n9|NODE_FAIL|n2|4\n"
    )
    (tmp_path / "10_0_result.pkl").write_bytes(b"\x80\x05\x95\x0f\x00\x8c\x07success\x94N\x86\x94.")
    (tmp_path / "12_0_log.out").touch()
    numbers = ["1", "2", "3", "4_1", "5", "6", "7", "8", "9", "10", "11", "12"]
    states = job_states([sent(tmp_path, number) for number in numbers])
    assert {state.id: state.state for state in states.values()} == dict(
        zip(numbers, ["running", "pending", "requeued", "completed", "failed", "cancelled", "timeout", "cancelled",
                      "node_fail", "completed", "unknown", "failed"], strict=True)
    )  # fmt: skip
    assert (states["job1"].seconds, states["job1"].node, states["job7"].seconds) == (93784, "n1", 60)
    assert states["job5"].error == "Error: data.root is not set."
    assert (states["job2"].error, states["job6"].error) == ("Dependency", "DependencyNeverSatisfied")
    assert [state.id for state in states.values() if state.queued] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("#!/bin/sh\necho 'slurm_load_jobs error: Socket timed out on send/recv operation' >&2; exit 1\n",
         r"SLURM's controller does not answer \(.*Socket timed out on send/recv operation\): try again later\."),
        (None, r"There is no squeue here .*: ask on a node of the cluster"),
    ],
)  # fmt: skip
def test_jobs_that_slurm_says_nothing_of_are_not_taken_for_ended_ones(fake, tmp_path, program, message):
    (fake.folder / "bin" / "squeue").unlink()
    if program:
        fake.program("squeue", program)
    (tmp_path / "1_0_log.out").touch()
    with pytest.raises(ConfigError, match=message):
        job_states([sent(tmp_path, "1")])


def test_what_is_submitted_is_on_record_before_the_next_is(fake, tmp_path):
    fake.program(
        "sbatch",
        SBATCH.format(folder=fake.folder) + f"cp {tmp_path}/submissions/*.json {fake.folder}/seen 2>&1; true\n",
    )
    submit([stage("a"), stage("b", "a"), stage("c", "b")], slurm(), folder=tmp_path)
    assert [job["id"] for job in json.loads((fake.folder / "seen").read_text())["jobs"]] == ["101", "102"]


def test_the_setup_ends_the_job_when_it_fails_and_the_checkout_comes_first(fake, tmp_path):
    submit([stage("a")], slurm("cluster.setup=[exit 3]", "cluster.environment={PYTHONPATH: /more}"), folder=tmp_path)
    lines = fake.script(101).splitlines()
    begun = lines.index("set -e")
    paths = "\n".join(lines[begun + 2 : begun + 4])
    assert lines[begun + 1] == "exit 3"
    done = subprocess.run(["bash", "-c", f"{paths}\necho $PYTHONPATH"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{REPOSITORY}:/more"


@pytest.mark.parametrize(
    ("option", "asked", "of_one"),
    [
        ("gres", "gpu:a100:4", "gpu:a100:1"),
        ("gres", "gpu:2g.20gb:4", "gpu:2g.20gb:1"),
        ("gres", "nvme:100,gpu:4", "nvme:100,gpu:1"),
        ("gpus-per-node", "a100:4", "a100:1"),
        ("gpus", 8, "1"),
        ("mail-type", "END", "END"),
    ],
)
def test_more_gives_one_gpu_to_what_is_no_training(fake, tmp_path, option, asked, of_one):
    jobs = [stage("train"), Job(name="judge", module="difftumor", words=("info",))]
    submit(jobs, slurm(f"+cluster.more={{{option}: '{asked}'}}"), folder=tmp_path)
    assert [fake.options(number)[option] for number in (101, 102)] == [str(asked), of_one]


@pytest.mark.parametrize(("state", "running"), [("RUNNING", True), ("COMPLETING", False), ("", False)])
def test_a_task_of_an_array_asks_for_itself_alone(fake, monkeypatch, state, running):
    """One task of an array has the array's own id: asked by it, SLURM lists all tasks."""
    fake.program("squeue", f'#!/bin/sh\ncase "$*" in *7_2*) echo {state};; *) echo RUNNING; echo PENDING;; esac\n')
    for name, value in (("SLURM_JOB_ID", "7"), ("SLURM_ARRAY_JOB_ID", "7"), ("SLURM_ARRAY_TASK_ID", "2")):
        monkeypatch.setenv(name, value)
    assert task._is_running() is running


@pytest.mark.parametrize(("code", "program"), [(signal.SIGTERM, "squeue"), (signal.SIGUSR2, "scontrol")])
def test_a_container_without_slurms_programs_is_named(fake, monkeypatch, code, program):
    (fake.folder / "bin" / "squeue").unlink()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(task.Task, "_run", lambda _: sys.exit(128 + code))
    monkeypatch.setattr(task.Task, "_requeue", lambda _: subprocess.check_call(["scontrol", "requeue", "7"]))
    made = task.Task(module="x", words=(), token="", max_requeues=1, checkout=Checkout(None))
    with pytest.raises(SystemExit, match=rf"there is no {program} here: bind it into the container"):
        made()


def test_the_last_error_is_ours_or_the_last_line(tmp_path):
    file = tmp_path / "log"
    assert last_error(file) == ""
    file.write_text("Traceback\nstages.X.RuntimeError: CUDA out of memory\nsrun: launch/slurm: x\n")
    assert last_error(file) == "stages.X.RuntimeError: CUDA out of memory"
    file.write_text("slurmstepd: error: *** JOB 5 ON n1 CANCELLED DUE TO TIME LIMIT ***\n")
    assert "TIME LIMIT" in last_error(file)


def test_submitting_and_looking_load_no_torch():
    code = "import sys, stages.submit, stages.cluster.task; print({'torch', 'pytorch_lightning'} & set(sys.modules))"
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()", time.monotonic() - begun
