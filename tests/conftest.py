"""What many tests use: fixtures, and functions to run the command line and read what it wrote."""

import csv
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from difftumor.cli import main

# How many examples the fuzzers try: a few, always the same, or those of `make fuzz`.
settings.register_profile("quick", max_examples=60, derandomize=True, deadline=None, database=None)
settings.register_profile("fuzz", max_examples=5000, deadline=None, print_blob=True)
settings.load_profile("quick")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Keep parallel test workers from fighting for cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what is cached for users out of their caches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with the real CT volumes; skips if it is missing."""
    folder = Path(os.environ.get("DIFFTUMOR_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "abdomen" / "ct.nii.gz").is_file():
        pytest.skip(f"no real CT in {folder}; set DIFFTUMOR_TEST_DATA to a folder that holds abdomen/ and sarcoma/")
    return folder


def run(*words: object) -> int:
    """Run ``difftumor WORDS`` in this process and return its exit code."""
    with pytest.raises(SystemExit) as exit_info:
        main([str(word) for word in words])
    return int(exit_info.value.code or 0)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file below a folder, by relative path."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def read_rows(file: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return standard normal values that depend on the seed alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the preview of tumors in a scan, which takes longer than everything else."""
    from matplotlib.figure import Figure

    monkeypatch.setattr("difftumor.synthesis.scan.files.plot_preview", lambda *_, **__: Figure(figsize=(1, 1)))
