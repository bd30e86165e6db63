"""The table of commands and the options that belong to ``difftumor`` itself."""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from difftumor import __version__
from difftumor.cli.data.check import check
from difftumor.cli.data.phantom import phantom
from difftumor.cli.data.select_healthy import select_healthy
from difftumor.cli.data.split_tumors import split_tumors
from difftumor.cli.evaluation.evaluate import evaluate
from difftumor.cli.evaluation.evaluate_autoencoder import evaluate_autoencoder
from difftumor.cli.evaluation.evaluate_synthesis import evaluate_synthesis
from difftumor.cli.evaluation.robustness import robustness
from difftumor.cli.evaluation.tables import tables
from difftumor.cli.models.export import export
from difftumor.cli.models.import_published import import_published
from difftumor.cli.models.info import info
from difftumor.cli.models.predict import predict
from difftumor.cli.options import held
from difftumor.cli.synthesis.synthesize import synthesize

# Name on the command line -> function, or an app with commands of its own, in the order of `difftumor --help`.
# How to add one: difftumor/cli/__init__.py.
COMMANDS: Mapping[str, Callable[..., None] | typer.Typer] = {
    "phantom": phantom,
    "synthesize": synthesize,
    "predict": predict,
    "evaluate": evaluate,
    "robustness": robustness,
    "evaluate-autoencoder": evaluate_autoencoder,
    "evaluate-synthesis": evaluate_synthesis,
    "import-published": import_published,
    "check": check,
    "split-tumors": split_tumors,
    "select-healthy": select_healthy,
    "export": export,
    "tables": tables,
    "info": info,
}


# Commands of which several may write to one folder at once, since they lock less than that.
SHARING = ("predict",)


def run_app(words: Sequence[str]) -> None:
    """Parse ``words``, run the command they name, and exit.

    Raises:
        SystemExit: When the command has ended, when the usage is wrong, or when interrupted.
    """
    # The command object, not the Typer app itself: calling the app would replace sys.excepthook.
    # One command is built in a tenth of the time of all; without a name, or with a wrong one, typer lists them all.
    command = typer.main.get_command(build_app([words[0]] if words and words[0] in COMMANDS else list(COMMANDS)))
    _join_lines(command)
    _lock_out(command)
    command(args=list(words), prog_name="difftumor")


def build_app(names: Iterable[str]) -> typer.Typer:
    """Return the typer app with some of the ``COMMANDS``."""
    app = typer.Typer(
        name="difftumor",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for name in names:
        command = COMMANDS[name]
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    return app


def _join_lines(command: Any) -> None:
    """Join the lines of each paragraph of help, which typer breaks where the docstring does."""
    if command.help:
        command.help = re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(command.help))
    for inner in getattr(command, "commands", {}).values():
        _join_lines(inner)


def _lock_out(command: Any) -> None:
    """Let commands keep others from writing to the same place, ``out``, until they end."""
    for inner in getattr(command, "commands", {}).values():
        _lock_out(inner)
    if any(parameter.name == "out" for parameter in command.params) and command.name not in SHARING:
        work = command.callback

        @wraps(work)
        def run(**values: Any) -> None:
            with held(None if values["out"] is None else Path(values["out"])):
                work(**values)

        command.callback = run


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"difftumor {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Make tumors in CT, and predict and evaluate them.

    For the options of a command: [bold]difftumor COMMAND --help[/bold].
    """
    # `--debug` is read by difftumor.cli.main; it is declared here so that --help shows it.
