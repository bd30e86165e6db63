"""Cross-organ transfer on SLURM: one command, whatever happens to its jobs, and the results of an undisturbed run."""

import subprocess
import time

import pytest

from difftumor import cli
from stages.cluster.status import job_states
from stages.cluster.submission import latest, read_submissions
from studies.jobs.states import standings
from studies.transfer.jobs import TransferGraph
from studies.transfer.options import read_words
from studies.transfer.study import main
from tests.slurm.test_jobs import SMALL

pytestmark = pytest.mark.slurm
LITTLE = (
    "backbones=[unet]", "fold_count=2", "sizes=[early]", "prediction.overlap=0.25",
    "autoencoder.experiment=demo", "autoencoder.trainer=cpu", "autoencoder.training.steps=25",
    "diffusion.experiment=demo", "diffusion.trainer=cpu", "diffusion.training.steps_per_epoch=10",
    "diffusion.validation.synthesize_every_n_epochs=0", "segmentation.experiment=demo", "segmentation.trainer=cpu",
    "segmentation.training.epochs=2", "segmentation.training.warmup_epochs=1",
)  # fmt: skip
ONE_CELL = (
    "sources=[liver]", "targets=[liver,pancreas]", "folds=[0]", "tumors=[diffusion]", "diffusion.training.steps=200",
)  # fmt: skip
GRID = (
    "sources=[liver,pancreas]", "targets=[pancreas,kidney]", "folds=[0,1]", "tumors=[real,handcrafted,diffusion]",
    "diffusion.training.steps=600",
)  # fmt: skip


def phantoms(folder, organs):
    """Write scans with and without tumors of every organ; returns the options that name them."""
    words = []
    for number, organ in enumerate(organs):
        for option, healthy in (("data", 0), ("healthy", 1)):
            out = folder / f"{organ}_{option}"
            with pytest.raises(SystemExit):
                cli.main([
                    "phantom", str(out), "--organs", organ, "--shape", "80", "--tumor-radius", "5,9", "--cases", "4",
                    "--healthy", str(healthy), "--seed", f"{number}{healthy}",
                ])  # fmt: skip
            words.append(f"{option}.{organ}={out}")
    return words


class Transfer:
    """The study on a cluster, with the same options in every call."""

    def __init__(self, slurm, out, words):
        self.slurm, self.out, self.words = slurm, out, words

    def submit(self):
        return main(["submit", "--out", str(self.out), *self.words, *SMALL])

    def jobs(self):
        submitted = latest(read_submissions(self.out))
        return submitted, job_states(list(submitted.values()))

    def wait(self, until=lambda states: not any(state.queued for state in states.values()), timeout=400):
        deadline = time.monotonic() + timeout
        while not until(self.jobs()[1]):
            assert time.monotonic() < deadline, self.jobs()[1]
            time.sleep(0.5)
        return self.jobs()[1]

    def wait_for_checkpoint(self, name):
        """Wait until a diffusion model has one, and return the job's id in SLURM."""
        checkpoint = self.out / "runs/diffusion" / name / "last.ckpt"
        self.wait(lambda states: checkpoint.is_file() or not states[name].queued)
        return self.jobs()[0][name].id

    def kill(self, name):
        subprocess.run(["scancel", "--signal=KILL", "--full", self.wait_for_checkpoint(name)], check=True)

    def diffusion_models(self):
        return sorted(name for name in self.jobs()[0] if name.startswith("diffusion_"))

    def results(self):
        """Weights, results by case, and tables, by their name in the folder."""
        patterns = ("checkpoints/*-????????/model.safetensors", "evaluate/*/cases.csv", "*.csv")
        return {file.relative_to(self.out): file.read_bytes() for each in patterns for file in self.out.glob(each)}


@pytest.fixture
def of_cluster(slurm, tmp_path, monkeypatch):
    """Make a study on the cluster."""
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    return lambda words: Transfer(slurm, tmp_path / "out", words)


@pytest.mark.slow
def test_a_killed_job_goes_again_with_the_next_call_and_the_results_are_those_of_an_undisturbed_run(
    of_cluster, tmp_path, capsys
):
    words = [*LITTLE, *ONE_CELL, *phantoms(tmp_path, ("liver", "pancreas"))]
    study = of_cluster(words)
    assert study.submit() == 0
    assert "9 jobs submitted" in capsys.readouterr().out  # eight and the table
    (diffusion,) = study.diffusion_models()
    study.kill(diffusion)
    assert study.wait()[diffusion].state != "completed"
    assert not list((study.out / "checkpoints").glob("segmenter_*"))  # what needs it has not started

    assert main(["status", "--out", str(study.out), *words]) == 0
    assert "failed" in capsys.readouterr().out
    assert study.submit() == 0
    assert "8 jobs submitted" in capsys.readouterr().out  # all but the autoencoder
    states = study.wait()
    assert {state.state for name, state in states.items() if name != "table-0"} == {"completed"}
    assert states["table-0"].state == "cancelled"  # that of the first call, which needed the killed job
    assert study.submit() == 0
    assert "0 jobs submitted" in capsys.readouterr().out
    assert_equal_undisturbed(study, tmp_path / "undisturbed")


@pytest.mark.nightly
def test_a_grid_ends_well_whatever_happens_to_its_jobs(of_cluster, tmp_path, capsys):
    """Two sources, two targets, two folds, three kinds of tumors, on phantoms of three organs."""
    words = [*LITTLE, *GRID, *phantoms(tmp_path, ("liver", "pancreas", "kidney"))]
    study = of_cluster(words)
    slurm = study.slurm
    assert study.submit() == 0
    killed, limited, preempted, lost = study.diffusion_models()  # which run at the same time, on two nodes

    study.kill(killed)
    limit = study.wait_for_checkpoint(limited)
    slurm.run("scontrol", "update", f"jobid={limit}", "timelimit=1")  # minutes; it is past the warning before
    slurm.wait_for_restart(limit)
    slurm.run("scontrol", "update", f"jobid={limit}", "timelimit=60")
    preempt = study.wait_for_checkpoint(preempted)
    node = slurm.job(preempt)["NodeList"]
    slurm.wait(
        slurm.submit(f"--nodelist={node}", "--exclusive", "--partition=high", "--output=/dev/null", script="true")
    )
    slurm.wait_for_restart(preempt)
    lose = study.wait_for_checkpoint(lost)
    restarts = int(slurm.job(lose)["Restarts"])
    node = slurm.wait(lose, "RUNNING")["NodeList"]
    slurm.set_node(node, "down")
    slurm.wait_for_restart(lose, restarts)
    slurm.set_node(node, "resume")

    states = study.wait(timeout=3600)
    assert states[killed].state in ("failed", "cancelled")
    for name in (limited, preempted, lost):
        assert states[name].state == "completed"
        assert "Resuming" in states[name].log.read_text()
    for name in (limited, preempted):
        assert "Interrupted at step" in states[name].log.read_text()
    assert study.submit() == 0
    states = study.wait(timeout=3600)
    assert {state.state for name, state in states.items() if name != "table-0"} == {"completed"}
    capsys.readouterr()
    assert study.submit() == 0
    assert "0 jobs submitted" in capsys.readouterr().out

    changed = TransferGraph(*read_words([*words, "segmentation.kidney.training.epochs=3"]), study.out)
    missing = {each.node.name for each in standings(changed).values() if each.status != "done"}
    column = {node.name for node in changed.nodes.values() if "_in_kidney_" in node.name or "_kidney_" in node.name}
    assert missing == {name for name in column if "real" not in name}
    assert missing
    assert_equal_undisturbed(study, tmp_path / "undisturbed", "--jobs", "2")


def assert_equal_undisturbed(study, out, *options):
    """Do the study here, and compare all results byte by byte."""
    here = Transfer(study.slurm, out, study.words)
    assert main(["run", "--out", str(out), *study.words, *options]) == 0
    expected, found = here.results(), study.results()
    assert expected
    assert {file for file in found if found[file] != expected.get(file)} == set()
    assert found.keys() == expected.keys()
