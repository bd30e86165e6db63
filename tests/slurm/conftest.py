"""A SLURM cluster on this machine for the tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.slurm.cluster import SlurmCluster, missing, slurm_cluster


@pytest.fixture(scope="session")
def _cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    if reason := missing():
        pytest.skip(reason)
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture
def slurm(_cluster: SlurmCluster) -> Iterator[SlurmCluster]:
    """A cluster of two idle nodes; whatever still runs after the test is ended."""
    yield _cluster
    _cluster.set_idle()
