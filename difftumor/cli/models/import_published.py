"""``difftumor import-published``: artifacts of the weights that the authors of DiffTumor publish."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from difftumor.exchange.published import check_published_file

if TYPE_CHECKING:
    from difftumor.exchange.published.saving import Imported

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", show_default=False, help="The file as published.")]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace another artifact at OUT, and what is beside it.")
]
OutArgument = Annotated[Path, typer.Argument(metavar="OUT", show_default=False, help="Folder for the artifact.")]

import_published = typer.Typer(
    no_args_is_help=True,
    help="Make artifacts of the published weights.\n\nNothing in a file is run: a file that would need it is refused.",
)


@import_published.command("autoencoder")
def autoencoder(file: FileArgument, out: OutArgument, overwrite: OverwriteOption = False) -> None:
    """Import the autoencoder, AutoencoderModel.ckpt."""
    _check(file, out, overwrite=overwrite)
    from difftumor.exchange.published.autoencoder import import_autoencoder

    _say(import_autoencoder(file, out))


@import_published.command("diffusion")
def diffusion(
    file: FileArgument,
    out: OutArgument,
    autoencoder: Annotated[
        Path, typer.Option(help="Artifact of the autoencoder published with it.", show_default=False)
    ],
    organ: Annotated[
        str | None, typer.Option(help="Organ whose tumors it was trained on; the file does not say.")
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Import a diffusion model, such as liver_early.pt or liver_noearly.pt.

    Its own copy of the autoencoder must equal the one given.
    """
    _check(file, out, overwrite=overwrite)
    from difftumor.exchange.published.diffusion import import_diffusion

    _say(import_diffusion(file, out, autoencoder=autoencoder, organ=organ))


@import_published.command("segmenter")
def segmenter(
    architecture: Annotated[
        str, typer.Argument(metavar="ARCHITECTURE", show_default=False, help="unet, nnunet or swinunetr.")
    ],
    file: FileArgument,
    out: OutArgument,
    organ: Annotated[str, typer.Option(help="Organ whose tumors it finds.", show_default=False)],
    overwrite: OverwriteOption = False,
) -> None:
    """Import a segmenter."""
    _check(file, out, overwrite=overwrite)
    from difftumor.exchange.published.segmenter import import_segmenter

    _say(import_segmenter(architecture, file, out, organ=organ))


def _check(file: Path, out: Path, *, overwrite: bool) -> None:
    """Refuse a file that is not there, and an OUT that holds anything but an earlier import of the file."""
    from difftumor.errors import ArtifactError, ConfigError
    from difftumor.files.checksums import sha256_of
    from difftumor.files.recovery import recover
    from difftumor.files.writing import is_empty
    from difftumor.models.artifact import WEIGHTS_FILE
    from difftumor.models.artifact_config import CONFIG_FILE, read_config

    check_published_file(file)
    recover(out)
    if overwrite or not out.is_dir() or is_empty(out):
        return
    others = sorted({path.name for path in out.iterdir()} - {CONFIG_FILE, WEIGHTS_FILE})
    try:
        source = read_config(out).training.get("imported_from")
    except ArtifactError:
        source = None
    if others or not isinstance(source, dict) or source.get("sha256") != sha256_of(file):
        what = others[0] if others else "another artifact"
        raise ConfigError(f"{out} already holds {what}: give another folder, or replace all of it with --overwrite.")


def _say(imported: Imported) -> None:
    from difftumor.models.artifact_config import read_config

    config = read_config(imported.path)
    stage = config.settings.get("tumor_stage")
    what = f"{stage}-tumor diffusion model" if stage else config.kind
    facts = [f"{name} {value}" for name, value in imported.source.items() if name not in ("file", "sha256")]
    trained = f" ({', '.join(facts)})" if facts else ""
    typer.echo(f"{imported.path} is the {what} of {imported.source['file']}{trained}.")
    if imported.ignored:
        groups = [f"{name} ({count})" if count > 1 else name for name, count in imported.ignored.items()]
        typer.echo(f"Entries ignored: {', '.join(groups)}.")
    if imported.unread:
        typer.echo(f"Not read: {', '.join(imported.unread)}.")
