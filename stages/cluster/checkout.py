"""Which code a job was submitted with, and whether it has changed since."""

from __future__ import annotations

import hashlib
import os
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
# What decides results.
_CODE = ("difftumor", "stages", "studies", "configs")


@dataclass(frozen=True)
class Checkout:
    """The code of a checkout.

    Args:
        commit: Hash of the commit; None where there is no git.
        changes: Hash of what is not committed; empty if all is.
    """

    commit: str | None
    changes: str = ""

    @classmethod
    def now(cls) -> Checkout:
        """Return the code of this checkout as it is now."""
        if (commit := _git("rev-parse", "HEAD")) is None:
            return cls(None)
        text = hashlib.sha256(_git("diff", "--binary", "HEAD", "--", *_CODE) or b"")
        listing = _git("ls-files", "--others", "--exclude-standard", "-z", "--", *_CODE) or b""
        new = [name for name in listing.decode().split("\0") if name]
        for name in new:
            text.update(name.encode() + _content(REPOSITORY / name))
        clean = hashlib.sha256().digest()
        return cls(commit.decode().strip(), "" if text.digest() == clean else text.hexdigest())

    @property
    def dirty(self) -> bool:
        """Whether something is not committed."""
        return bool(self.changes)

    @property
    def base(self) -> str:
        """The commit."""
        return "code without git" if self.commit is None else f"commit {self.commit[:12]}"

    @property
    def note(self) -> str:
        """Say that there are changes that are not committed; empty if all is."""
        sentence = f"Note: the code of {self.base} has uncommitted changes; commit them so that results can be traced."
        return sentence * self.dirty

    def __str__(self) -> str:
        """The commit, and whether there are changes beyond it."""
        return self.base + f" with changes {self.changes[:8]}" * self.dirty

    def warning(self, now: Checkout) -> str:
        """Say that the code has changed since; empty if it has not, or if one is unknown, as where there is no git."""
        if self == now or None in (self.commit, now.commit):
            return ""
        return f"Warning: the checkout has changed since this job was submitted: then {self}, now {now}, which runs."

    def record(self) -> dict[str, str | bool | None]:
        """Return what JSON holds."""
        return {**asdict(self), "dirty": self.dirty}


def _content(file: Path) -> bytes:
    """Return what is in a file, or where a link points; of another repository git tells the folder only."""
    if file.is_symlink():
        return os.fsencode(os.readlink(file))
    return file.read_bytes() if file.is_file() else b""


def _git(*words: str) -> bytes | None:
    try:
        done = subprocess.run(["git", "-C", str(REPOSITORY), *words], capture_output=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None
