"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Keep parallel test workers from fighting for cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with the real CT volumes; skips where it is missing."""
    folder = Path(os.environ.get("DIFFTUMOR_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "abdomen" / "ct.nii.gz").is_file():
        pytest.skip(f"no real CT in {folder}; set DIFFTUMOR_TEST_DATA to a folder that holds abdomen/ and sarcoma/")
    return folder
