"""A cohort and untrained artifacts for studies."""

import pytest

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
