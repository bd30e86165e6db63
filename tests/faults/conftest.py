"""The cohort and stage 1 at a tiny size, as in the tests of the stages; a run of it that died; what must not run."""

import shutil
import sys

import pytest

from stages.autoencoder.train import build
from tests.faults.commands import write_inputs
from tests.stages import conftest as stages
from tests.stages.builds import Crash, composed, crashing_at, run

cohort = stages.cohort
tiny_config = stages.tiny_config


@pytest.fixture(scope="session")
def died(cohort, tmp_path_factory):
    """A folder with a run that died at step 5 of 8, after checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("died")
    with pytest.raises(Crash):
        run(config_of(cohort, folder), crashing_at(build, 5))
    return folder


def config_of(cohort, folder, *overrides):
    places = (f"data.root={cohort}", f"runs_dir={folder}/runs", f"checkpoints_dir={folder}/checkpoints")
    return composed("autoencoder", [*stages.TINY, *places, *overrides])


@pytest.fixture
def copied(died, cohort, tmp_path):
    """Return the folder of a copy of the run, and what resumes it."""
    shutil.copytree(died, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "runs/autoencoder/default"
    return folder, lambda *overrides, build=build, job=None: run(
        config_of(cohort, tmp_path, *overrides), build, job=job
    )


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Write what the commands read, for all tests: nothing may change it."""
    return write_inputs(tmp_path_factory.mktemp("files"))


@pytest.fixture
def sentinel(tmp_path_factory, monkeypatch):
    """Return a place where a folder appears when code of a file has run, or the module ``lethal`` is imported."""
    folder = tmp_path_factory.mktemp("lethal")
    place = folder / "sentinel"
    (folder / "lethal.py").write_text(f"import os\nos.mkdir({str(place)!r})\ndef attack(*_, **__): pass\n")
    monkeypatch.syspath_prepend(folder)
    yield place
    assert not place.exists()
    assert "lethal" not in sys.modules
