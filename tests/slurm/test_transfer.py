"""Cross-organ transfer on SLURM: one command, again after a job was killed, and the results of an undisturbed run."""

import subprocess
import time

import pytest

from difftumor import cli
from stages.cluster.status import job_states
from stages.cluster.submission import latest, read_submissions
from studies.transfer.study import main
from tests.slurm.test_jobs import SMALL

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
LITTLE = (
    "sources=[liver]", "targets=[liver,pancreas]", "backbones=[unet]", "folds=[0]", "fold_count=2", "sizes=[early]",
    "tumors=[diffusion]", "prediction.overlap=0.25", "autoencoder.experiment=demo", "autoencoder.trainer=cpu",
    "autoencoder.training.steps=25", "diffusion.experiment=demo", "diffusion.trainer=cpu",
    "diffusion.training.steps=200",
    "diffusion.training.steps_per_epoch=10", "diffusion.validation.synthesize_every_n_epochs=0",
    "segmentation.experiment=demo", "segmentation.trainer=cpu", "segmentation.training.epochs=2",
    "segmentation.training.warmup_epochs=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Options of a small transfer on phantoms."""
    folder, words = tmp_path_factory.mktemp("phantoms"), list(LITTLE)
    for number, organ in enumerate(("liver", "pancreas")):
        for option, healthy in (("data", 0), ("healthy", 1)):
            out = folder / f"{organ}_{option}"
            with pytest.raises(SystemExit):
                cli.main([
                    "phantom", str(out), "--organs", organ, "--shape", "80", "--tumor-radius", "5,9", "--cases", "4",
                    "--healthy", str(healthy), "--seed", f"{number}{healthy}",
                ])  # fmt: skip
            words.append(f"{option}.{organ}={out}")
    return words


def jobs_of(out):
    submitted = latest(read_submissions(out))
    return submitted, job_states(list(submitted.values()))


def wait(out, until=lambda states: not any(state.queued for state in states.values())):
    deadline = time.monotonic() + 400
    while not until(jobs_of(out)[1]):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    return jobs_of(out)


def test_a_killed_job_goes_again_with_the_next_call_and_the_results_are_those_of_an_undisturbed_run(
    words, slurm, tmp_path, monkeypatch, capsys
):
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    out, undisturbed = tmp_path / "out", tmp_path / "undisturbed"
    submit = ["submit", "--out", str(out), *words, *SMALL]
    assert main(submit) == 0
    assert "9 jobs submitted" in capsys.readouterr().out  # eight and the table
    (diffusion,) = [name for name in jobs_of(out)[0] if name.startswith("diffusion_")]
    checkpoint = out / "runs/diffusion" / diffusion / "last.ckpt"
    wait(out, lambda states: checkpoint.is_file() or not states[diffusion].queued)
    killed = jobs_of(out)[0][diffusion].id
    subprocess.run(["scancel", "--signal=KILL", "--full", killed], check=True)
    _, states = wait(out)
    assert states[diffusion].state != "completed"
    assert not list((out / "checkpoints").glob("segmenter_*"))  # what needs it has not started

    assert main(["status", "--out", str(out), *words]) == 0
    assert "failed" in capsys.readouterr().out
    assert main(submit) == 0
    assert "8 jobs submitted" in capsys.readouterr().out  # all but the autoencoder
    _, states = wait(out)
    assert {state.state for name, state in states.items() if name != "table-0"} == {"completed"}
    assert states["table-0"].state == "cancelled"  # that of the first call, which needed the killed job
    assert main(submit) == 0
    assert "0 jobs submitted" in capsys.readouterr().out

    assert main(["run", "--out", str(undisturbed), *words]) == 0
    for pattern in ("checkpoints/*-????????/model.safetensors", "evaluate/*/cases.csv", "*.csv"):
        files = sorted(undisturbed.glob(pattern))
        assert files
        for file in files:
            assert file.read_bytes() == (out / file.relative_to(undisturbed)).read_bytes(), file
