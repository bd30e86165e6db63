"""A cohort and untrained artifacts for studies."""

import pytest

from difftumor import cli
from stages.config.compose import compose_config
from stages.run.run import run_stage
from stages.segmentation.train import build
from studies.jobs import running
from tests.stages.builds import KINDS
from tests.stages.tumor_cohort import write_autoencoder, write_cohort, write_diffusion


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of ``cohort``, ``autoencoder`` and ``diffusion_liver_early``, both untrained."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "cohort").mkdir()
    write_cohort(folder / "cohort")
    write_autoencoder(folder)
    write_diffusion(folder, "early")
    return folder


@pytest.fixture
def in_this_process(monkeypatch):
    """Run the jobs of a study of segmenters here: thirty-two interpreters would start otherwise."""

    def run(node, log, processes):
        if node.module == "difftumor":
            with pytest.raises(SystemExit) as ended:
                cli.main(list(node.command))
            return ended.value.code
        run_stage(compose_config("segmentation", node.command), KINDS["segmentation"], build)
        return 0

    monkeypatch.setattr(running, "_run", run)


@pytest.fixture
def never_run(monkeypatch):
    """Fail when a job of a study starts."""
    monkeypatch.setattr(running, "_run", lambda *_: pytest.fail("a job has started"))
