"""The command line as a user meets it: help, errors, exit codes."""

import errno
import subprocess
import sys

import numpy as np
import pytest

from difftumor import __version__
from difftumor.cli import app as cli_app
from difftumor.cli.options import parse_names, parse_numbers
from difftumor.errors import ConfigError, concerning, sentence_of
from difftumor.scans.organs import CONVENTIONS
from tests.conftest import run


def with_command(monkeypatch, error: BaseException) -> None:
    def broken() -> None:
        """Raise."""
        raise error

    monkeypatch.setattr(cli_app, "COMMANDS", {"broken": broken, "other": broken})


def test_help_lists_every_command(capsys):
    assert run("--help") == 0
    text = capsys.readouterr().out
    assert all(name in text for name in cli_app.COMMANDS)
    assert "--version" in text
    assert "--debug" in text


@pytest.mark.parametrize("name", list(cli_app.COMMANDS))
def test_each_command_has_help(name, capsys):
    assert run(name, "--help") == 0
    assert f"difftumor {name}" in capsys.readouterr().out


def test_an_unknown_command_is_told_among_all(capsys):
    assert run("synthesise") == 2
    assert "synthesize" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("--version",), ("predict", "--help")])
def test_a_program_of_its_own_collects_less_garbage_and_a_caller_as_before(words):
    script = "import gc, sys; from difftumor.cli import main; {}; main({})"
    report = "import atexit; atexit.register(lambda: print('first threshold', gc.get_threshold()[0]))"
    said = [
        subprocess.run(
            [sys.executable, "-c", script.format(report, own), *words], capture_output=True, text=True
        ).stdout
        for own in ("", list(words))
    ]
    thresholds = [int(text.rpartition("first threshold ")[2]) for text in said]
    assert thresholds[0] > 10_000 > thresholds[1]


def test_paragraphs_of_help_fill_the_terminal(monkeypatch, capsys):
    def long() -> None:
        """Do it.

        Here is a paragraph of a docstring whose lines are longer than a terminal of eighty columns is, as all of them
        are that are written in this source, and it goes on.

        [bold]Another[/bold] one.
        """

    monkeypatch.setattr(cli_app, "COMMANDS", {"long": long, "other": long})
    monkeypatch.setenv("COLUMNS", "80")
    assert run("long", "--help") == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    start = next(number for number, line in enumerate(lines) if line.startswith("Here is"))
    *paragraph, _, _ = lines[start : lines.index("Another one.")]  # its last line, and an empty one
    assert paragraph
    assert min(map(len, paragraph)) > 60


@pytest.mark.parametrize(
    "words", [("synthesize",), ("select-healthy",), ("export", "nnunet")], ids=lambda words: words[0]
)
def test_help_names_all_conventions(words, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    assert run(*words, "--help") == 0
    text = capsys.readouterr().out
    assert [name for name in CONVENTIONS if name != "standard" and name not in text] == []


def test_version(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out.strip() == f"difftumor {__version__}"


def test_unknown_command_and_option_are_wrong_usage(capsys):
    assert run("nonsense") == 2
    assert run("info", "--nonsense") == 2
    assert "nonsense" in capsys.readouterr().err


def test_library_error_is_one_sentence_on_stderr(monkeypatch, capsys):
    with_command(monkeypatch, ConfigError("--count is 0: give 1 or more."))
    assert run("broken") == 1
    streams = capsys.readouterr()
    assert streams.err == "Error: --count is 0: give 1 or more.\n"
    assert streams.out == ""


@pytest.mark.parametrize("words", [("--debug", "broken"), ("broken", "--debug")])
def test_debug_shows_the_traceback_wherever_it_stands(monkeypatch, capsys, words):
    with_command(monkeypatch, ConfigError("no."))
    assert run(*words) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("Error: no.\n")


def test_file_system_error_names_the_file(monkeypatch, capsys):
    with_command(monkeypatch, PermissionError(13, "Permission denied", "/there"))
    assert run("broken") == 1
    assert capsys.readouterr().err == "Error: /there: permission denied.\n"


def test_interrupt_exits_130(monkeypatch):
    with_command(monkeypatch, KeyboardInterrupt())
    assert run("broken") == 130


def test_an_error_that_nobody_foresaw_is_one_sentence_that_names_the_files_in_use(monkeypatch, capsys, tmp_path):
    with_command(monkeypatch, ZeroDivisionError("division by zero"))
    assert run("broken") == 1
    assert capsys.readouterr().err == (
        "Error: ZeroDivisionError: division by zero. This is unexpected; --debug shows where it happened.\n"
    )
    assert run("broken", "--debug") == 1
    assert "Traceback" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError) as caught, concerning("/there/ct.nii"):
        _ = 1 / 0
    with_command(monkeypatch, caught.value)
    assert run("broken") == 1
    assert capsys.readouterr().err.startswith("Error: /there/ct.nii: ZeroDivisionError")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), ("not enough memory (", " GiB free): lower jobs (--jobs)", "data.batch_size")),
        (np._core._exceptions._ArrayMemoryError((2**40,), np.dtype("u1")), ("1.00 TiB more asked, ",)),
        (
            RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 107374182400 bytes."
            ),
            ("100.00 GiB more asked, ",),
        ),
        (
            type("OutOfMemoryError", (RuntimeError,), {})(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 8 GiB of which 1.50 GiB is free."
            ),
            ("(2.00 GiB more asked, 1.50 GiB free): lower windows_per_batch",),
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "/out/ct.nii.gz"),
            ("/out/ct.nii.gz: no space left on device: make room",),
        ),
    ],
    ids=["plain", "array", "torch", "cuda", "disk"],
)
def test_lack_of_memory_or_room_says_what_to_lower(error, words):
    text = sentence_of(error)
    assert [word for word in words if word not in text] == []
    assert "\n" not in text


def test_the_app_imports_nothing_heavy():
    code = (
        "import sys, difftumor.cli.app; "
        "print(sorted({'torch', 'numpy', 'monai', 'scipy', 'nibabel', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_parse_names_keeps_order_and_drops_repeats():
    assert parse_names(" b,a, b", option="--x", known=("a", "b")) == ("b", "a")


@pytest.mark.parametrize("text", ["", " , ", "a,c"])
def test_parse_names_refuses(text):
    with pytest.raises(ConfigError, match=r"--x .* a, b"):
        parse_names(text, option="--x", known=("a", "b"))


def test_parse_numbers():
    assert parse_numbers("1.5", float, option="--x", counts=(1, 3)) == (1.5,)
    assert parse_numbers("1,2,3", int, option="--x", counts=(1, 3)) == (1, 2, 3)


@pytest.mark.parametrize("text", ["1,2", "one", "", "1.5,2,3"])
def test_parse_numbers_refuses(text):
    with pytest.raises(ConfigError, match=r"--x .* 1 or 3"):
        parse_numbers(text, int, option="--x", counts=(1, 3))
