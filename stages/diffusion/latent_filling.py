"""Filling a cache of latents: what is missing is found, reported and made, by as many processes as there are."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from random import SystemRandom
from typing import Any, TypeVar

from torch import Tensor

from difftumor.cli.many import progress_bar
from difftumor.datasets.transforms import Item
from difftumor.errors import ConfigError
from difftumor.files.results import check_folder
from stages.diffusion.latent_cache import LatentCache
from stages.ranks import say

T = TypeVar("T")
Encode = Callable[[Item], Mapping[str, Tensor]]
# Crops from one line of progress to the next.
SAID_EVERY = 100


@dataclass(frozen=True, kw_only=True)
class CaseCrops:
    """Crops of one case, to be encoded.

    Args:
        load: Reads the case.
        cuts: By key, what cuts the crop out of what was read.
    """

    load: Callable[[], Any]
    cuts: Mapping[str, Callable[[Any], Item]]


def fill(
    cache: LatentCache, wanted: Sequence[CaseCrops], *, encode: Encode, bytes_each: int, silent: bool = False
) -> None:
    """Make the latents that are missing or damaged.

    Every process, of this run or of another, makes whatever it finds missing, in an order of its own. So they share the
    work, none waits for another, and when one is done, all latents are there.

    Args:
        cache: To fill.
        wanted: All crops that the cache is to hold.
        encode: Makes latent and condition of a crop.
        bytes_each: Size of a latent and its condition.
        silent: Say nothing, as another rank does.

    Raises:
        ConfigError: The folder cannot be written to, or the disk has no room for them.
    """
    total = sum(len(crops.cuts) for crops in wanted)
    with _progress("Checking latents", total, silent) as advance:
        missing = [replace(crops, cuts=_missing(cache, crops, advance)) for crops in wanted]
    to_make = sum(len(crops.cuts) for crops in missing)
    if not silent:
        say(
            f"Latents in {cache.folder}: {total} of {bytes_each / 1e6:.2g} MB, {total * bytes_each / 1e9:.2g} GB in "
            f"all; {total - to_make} are there, {to_make} to be made."
        )
    if to_make:  # a folder that is full may be one that others share and protect
        check_folder(cache.folder, option="latents.cache")
        _check_room(cache.folder, to_make * bytes_each)
    made = count(1)
    with _progress("Encoding crops", to_make, silent) as advance:

        def done() -> None:
            advance()
            if (number := next(made)) % SAID_EVERY == 0 and number < to_make and not silent:
                say(f"{number} of {to_make} encoded.")

        for crops in _in_any_order(missing):
            _make(cache, crops, encode, done)


def _missing(cache: LatentCache, crops: CaseCrops, advance: Callable[[], None]) -> dict[str, Callable[[Any], Item]]:
    missing = {}
    for key, cut in crops.cuts.items():
        if cache.read(key) is None:
            missing[key] = cut
        advance()
    return missing


def _make(cache: LatentCache, crops: CaseCrops, encode: Encode, advance: Callable[[], None]) -> None:
    loaded = None
    for key in _in_any_order(list(crops.cuts)):
        if cache.read(key) is None:  # still
            loaded = crops.load() if loaded is None else loaded
            cache.write(key, encode(crops.cuts[key](loaded)))
        advance()


def _in_any_order(things: Sequence[T]) -> list[T]:
    # Changes only who makes what: two processes would otherwise make the same latents at the same time.
    return SystemRandom().sample(things, len(things))


def _check_room(folder: Path, wanted: int) -> None:
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if (free := shutil.disk_usage(there).free) < wanted:
        raise ConfigError(
            f"latents.cache is {folder}, where {free / 1e9:.2g} GB are free and {wanted / 1e9:.2g} GB needed: make "
            "room, give another folder, or fewer latents.crops."
        )


def _progress(description: str, total: int, silent: bool) -> AbstractContextManager[Callable[[], None]]:
    return nullcontext(lambda: None) if silent else progress_bar(description, total)
