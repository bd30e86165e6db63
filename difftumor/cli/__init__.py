"""The ``difftumor`` command: one file per subcommand; each parses, calls the library and prints.

To add a command, write ``difftumor/cli/<group>/<name>.py`` with one typed function ``<name>`` whose docstring is the
help text, and add it to ``COMMANDS`` in ``difftumor/cli/app.py``; a command with subcommands is a ``typer.Typer``.
Import the library inside that function, never at the top of the file, so that ``difftumor --help`` stays instant. Raise
the classes of ``difftumor.errors``: ``main`` prints them.
"""

import atexit
import gc
import os
import sys
import traceback
from collections.abc import Sequence

from difftumor.errors import is_unexpected, printable, told
from difftumor.files.processes import ended_cleanly

FAILED = 1
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Args:
        arguments: Words after the program's name; those of the process when None.

    Raises:
        SystemExit: Always; 0 on success, 1 on any error, 2 on wrong usage, 130 when interrupted, 143 when ended by
            SIGTERM.
    """
    if arguments is None:
        _spare_collections()
    words, debug = _take_debug(sys.argv[1:] if arguments is None else list(arguments))
    try:
        # Here, because importing the app registers every command.
        from difftumor.cli.app import run_app

        with ended_cleanly():
            run_app(words)
    except Exception as error:
        if debug:
            traceback.print_exc()
        _note_files(error, words)
        print(f"Error: {printable(told(error, debug='--debug'))}", file=sys.stderr)
        sys.exit(FAILED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _note_files(error: Exception, words: Sequence[str]) -> None:
    """Let the sentence on an unexpected error that names nothing name the files of the command."""
    files = [word for word in words if os.path.isfile(word)]
    if files and is_unexpected(error) and not getattr(error, "__notes__", ()):
        error.add_note(", ".join(files[:3]))


def _spare_collections() -> None:
    """Collect garbage less often, and not at exit: PyTorch and matplotlib leave so many objects that it takes a second.

    For a process of our own only. Arrays and tensors are freed by counting references, whatever the collector does.
    """
    gc.set_threshold(50_000, 20, 20)
    # Triton prints a page about what was not collected.
    atexit.register(lambda: None if "triton" in sys.modules else gc.freeze())


def _take_debug(words: list[str]) -> tuple[list[str], bool]:
    """Remove ``--debug`` from anywhere before ``--``, so that it works before and after the subcommand."""
    end = words.index("--") if "--" in words else len(words)
    options = [word for word in words[:end] if word != "--debug"]
    return options + words[end:], len(options) < end
