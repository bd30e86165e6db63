"""Reading and writing of the published checkpoints."""

from pathlib import Path

from difftumor.errors import PublishedFileError


def check_published_file(file: Path) -> None:
    """Refuse a file that is not there; without PyTorch, so that a wrong path is told at once.

    Raises:
        PublishedFileError: There is no such file.
    """
    if not file.is_file():
        raise PublishedFileError(f"There is no file at {file}: give a published checkpoint, such as liver_early.pt.")
