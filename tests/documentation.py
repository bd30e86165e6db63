"""The commands that the documentation shows."""

import re
import shlex
from pathlib import Path


def commands(page: Path) -> list[list[str]]:
    """Return the commands of a page's ``bash`` blocks as words, comments dropped, continued lines joined."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]
