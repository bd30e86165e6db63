"""Zip archives as PyTorch writes them: what shows that one is damaged, or was made by something else."""

import zipfile
from pathlib import Path

# Torch reads nothing where the attributes of an entry call it a folder, and leaves the tensor as memory was.
_FOLDER = 0x10


def archive_damage(file: Path, *, sums: bool = True) -> str:
    """Return what is wrong with an archive, in words that follow "it is damaged:"; nothing for a sound one.

    Args:
        file: The archive. Only its tables are read, and with ``sums`` all of it, part by part.
        sums: Whether to compare the checksum of each entry, which PyTorch itself never looks at.

    Raises:
        OSError: The file cannot be read.
        zipfile.BadZipFile: It is no archive; damage in its tables can raise anything else.
    """
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            return "it is compressed, which PyTorch never does"
        if any(entry.external_attr & _FOLDER for entry in entries):
            return "its table calls an entry a folder"
        names = {entry.filename for entry in entries}
        if len(names) < len(entries) or sum(entry.file_size for entry in entries) > file.stat().st_size:
            return "it holds entries twice or on top of each other"
        wrong = archive.testzip() if sums else None
    return "" if wrong is None else f"the checksum of {wrong!r} differs"
