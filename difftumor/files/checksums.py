"""What identifies a file's content."""

import hashlib
from pathlib import Path


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def provenance(file: Path) -> dict[str, str]:
    """Return a file's path and SHA-256, as records name what was read."""
    return {"path": str(file.resolve()), "sha256": sha256_of(file)}
