"""``python -m stages.submit``: what several values stand for, and what is refused before anything is submitted."""

import re
import sys

import pytest

from difftumor.errors import ConfigError
from stages import submit as command
from stages.cluster.checkout import Checkout
from stages.cluster.jobs import Submitted
from stages.cluster.status import JobState
from stages.submit import expand, main, submit_stage


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["fold=0"], [("fold=0",)]),
        (["fold=0,2", "seed=1"], [("fold=0", "seed=1"), ("fold=2", "seed=1")]),
        (["fold=range(0,3)"], [("fold=0",), ("fold=1",), ("fold=2",)]),
        (["backbone=choice(unet,nnunet)"], [("backbone=unet",), ("backbone=nnunet",)]),
        (["backbone=glob(*net,exclude=nn*)"], [("backbone=unet",)]),
        (["fold=0,1", "seed=3,4"], [("fold=0", "seed=3"), ("fold=0", "seed=4"), ("fold=1", "seed=3"),
                                    ("fold=1", "seed=4")]),
        (["data.window_hu=[0,1]", "name='a,b'"], [("data.window_hu=[0,1]", "name='a,b'")]),
        (["+debug=one_batch,overfit"], [("+debug=one_batch",), ("+debug=overfit",)]),
    ],
)  # fmt: skip
def test_several_values_stand_for_a_training_each(words, expected):
    assert expand("segmentation", words) == expected


@pytest.fixture
def submitted(monkeypatch, tmp_path):
    """What would be submitted."""
    seen = []

    def note(jobs, cluster, *, folder):
        seen.append((jobs, cluster, folder))
        return tuple(Submitted(name=job.name, id="1", log=tmp_path, errors=tmp_path) for job in jobs)

    monkeypatch.setattr(command, "submit", note)
    return seen


def test_trainings_are_named_after_their_runs(submitted, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Checkout, "now", lambda: Checkout("0123456789abcdef", "changes"))
    words = ["organ=liver", "fold=0,1", f"runs_dir={tmp_path}", "trainer=gpu", "cluster=slurm", "cluster.at_once=4"]
    submit_stage("segmentation", words)
    ((jobs, cluster, folder),) = submitted
    assert [job.name for job in jobs] == [f"segmentation_liver_unet_mixed_fold{fold}" for fold in (0, 1)]
    assert jobs[1].words == ("organ=liver", "fold=1", f"runs_dir={tmp_path}", "trainer=gpu")
    assert (cluster.kind, cluster.at_once, folder) == ("slurm", 4, tmp_path / "cluster")
    printed = capsys.readouterr().out
    assert "Note: the code of commit 0123456789ab has uncommitted changes; commit them so that" in printed
    assert "Submitted 2 jobs" in printed
    assert f"python -m stages.submit status runs_dir={tmp_path}" in printed


@pytest.mark.parametrize(
    ("stage", "words", "message"),
    [
        ("segment", [], r"There is no stage 'segment': choose from autoencoder, diffusion, segmentation"),
        ("segmentation", ["fold=0,1", "fol=2"], r"Unknown option 'fol': did you mean 'fold'"),
        ("segmentation", ["fold=0,x"], r"fold is 'x'"),
        ("segmentation", ["organ=liver,brain"], r"There is no organ 'brain'"),
        (
            "segmentation",
            ["seed=0,1"],
            r"'seed=0' and 'seed=1' have the same artifact \(checkpoints/.*give name=…",
        ),
        ("segmentation", ["seed=0,1", "artifact=${seed}"], r"have the same name \(liver_unet_mixed_fold0\)"),
        ("segmentation", ["fold=interval(0,1)"], r"has no end of values"),
        ("segmentation", ["fold=range(0,0)"], r"stands for nothing"),
        ("segmentation", ["fold=[0"], r"The options cannot be read"),
        ("segmentation", ["--multirun"], r"--multirun is not an option of stages\.submit"),
        ("segmentation", ["runs_dir=a,b", "fold=0"], r"runs_dir has several values|have the same artifact"),
        ("segmentation", ["cluster=lab"], r"There is no cluster 'lab'"),
    ],
)
def test_what_is_wrong_is_one_sentence_before_anything_is_submitted(submitted, stage, words, message):
    with pytest.raises(ConfigError, match=message) as caught:
        submit_stage(stage, words)
    assert "\n" not in str(caught.value)
    assert not submitted


def test_what_is_under_way_is_not_submitted_again(submitted, tmp_path, monkeypatch):
    name = "segmentation_liver_unet_mixed_fold0"
    job = Submitted(name=name, id="7", log=tmp_path, errors=tmp_path)
    monkeypatch.setattr(command, "latest", lambda _: {name: job})
    for state in ("running", "completed"):
        found = JobState(name=name, id="7", state=state, log=tmp_path)
        monkeypatch.setattr(command, "job_states", lambda _, found=found: {name: found})
        if state == "running":
            with pytest.raises(ConfigError, match=rf"{name} is running as job 7: wait for it"):
                submit_stage("segmentation", [f"runs_dir={tmp_path}"])
        else:
            submit_stage("segmentation", [f"runs_dir={tmp_path}"])
    assert len(submitted) == 1


def test_the_command_line(monkeypatch, capsys, tmp_path):
    for words, code, text in (
        (["--help"], 0, "Usage: python -m stages.submit STAGE"),
        ([], 1, "Usage"),
        (["status", f"runs_dir={tmp_path}"], 1, "holds no submission"),
        (["status", "--wach"], 1, "status takes runs_dir=DIR and --watch"),
        (["nothing"], 1, "Error: There is no stage 'nothing'"),
    ):
        monkeypatch.setattr(sys, "argv", ["submit", *words])
        with pytest.raises(SystemExit) as left:
            main()
        printed = capsys.readouterr()
        assert left.value.code == code
        assert re.search(text, printed.out + printed.err)
