"""The checkpoints of a run: written whole beside their place, verified before use, and one earlier one is kept."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from difftumor.errors import NO_ROOM, TrainingError
from difftumor.files.archives import archive_damage
from difftumor.files.writing import give_name, written_whole
from stages.run.folder import LAST, PREVIOUS

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

OnDamage = Literal["refuse", "previous"]
_TRAILER = b"\ndifftumor crc32 %08x\n"
_READ_BYTES = 1 << 20
# What training goes on from; callbacks may hold infinities by right, such as the best loss so far.
_STATE = ("state_dict", "optimizer_states", "ema")


class DurableCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint to the disk before it takes the place of the last one, which becomes ``previous.ckpt``.

    Lightning's own goes through a copy in memory and through ``$TMPDIR``, which may be small. Behind the archive is
    a line that ``torch.load`` passes over, with the CRC-32 of all of it.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Raises:
            TrainingError: A weight is not finite, or the disk is full; the last checkpoint stays.
        """
        place = Path(path)
        if (bad := _not_finite(checkpoint)) is not None:
            raise TrainingError(
                f"{bad} is not finite at step {checkpoint.get('steps_done')}: {place} is kept as it was; start over "
                "with fresh=true and a lower optimizer.lr, or rerun the same command to try again from there."
            )
        try:
            with written_whole(place) as temporary:
                with _Summed(io.FileIO(temporary, "w")) as stream:
                    torch.save(checkpoint, stream)
                    stream.write(_TRAILER % stream.crc)
                if place.is_file():
                    give_name(place, place.with_name(PREVIOUS))
        except OSError as error:
            raise _not_written(place, error) from error


class _Summed(io.BufferedWriter):
    """A file that sums up what is written to it."""

    crc = 0

    def write(self, part: ReadableBuffer) -> int:
        """Write a part."""
        self.crc = zlib.crc32(part, self.crc)
        return super().write(part)


def _not_written(place: Path, error: OSError) -> TrainingError:
    reason = (error.strerror or type(error).__name__).lower()
    size = place.stat().st_size / 1e6 if place.is_file() else None
    room = f"free {size:.1f} MB or more there" if size else "make room there"
    remedy = room if error.errno in NO_ROOM else "see that it can be written"
    kept = "the checkpoint before it is kept" if size else "no checkpoint was written before"
    return TrainingError(f"{place} cannot be written ({reason}; {kept}): {remedy} and rerun the same command.")


def checkpoint_to_resume(folder: Path, *, on_damage: OnDamage) -> tuple[Path, str]:
    """Return the checkpoint that a run goes on from, verified.

    Args:
        folder: Of the run, which has saved before.
        on_damage: What to do if ``last.ckpt`` is missing or damaged: refuse, or take ``previous.ckpt``.

    Returns:
        The file, and what is to be said about it; empty if it is the last one.

    Raises:
        TrainingError: It is damaged; says whether the one before it can be used.
    """
    last, previous = folder / LAST, folder / PREVIOUS
    try:
        check_checkpoint(last)
    except TrainingError as damage:
        try:
            step = check_checkpoint(previous)
        except TrainingError:
            remedy = "bring back a copy of it, or set fresh=true to start over"
            raise TrainingError(f"{damage}: {remedy}.") from damage
        if on_damage == "previous":
            return previous, f"{damage}: going on from {previous} (step {step})."
        raise TrainingError(
            f"{damage}: set trainer.on_damage=previous to go on from {previous} (step {step}), or fresh=true to start "
            "over."
        ) from damage
    return last, ""


def check_checkpoint(file: Path) -> int:
    """Verify all of a checkpoint: the checksums of its parts, what it holds, and that its weights are finite.

    Returns:
        How many steps the run had done.

    Raises:
        TrainingError: What is wrong, without a remedy.
    """
    if file.is_symlink() and not file.exists():
        raise TrainingError(f"{file} is a link to {file.readlink()}, which is not there (a disk that is not mounted?)")
    if not file.is_file():
        raise TrainingError(f"{file} {'is not a file' if file.exists() else 'is missing'}")
    try:
        _check_parts(file, sums=not _has_sum(file))
    except OSError as error:
        raise TrainingError(f"{file} cannot be read ({(error.strerror or str(error)).lower()})") from error
    try:
        content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        bad = _not_finite(content) if isinstance(content, dict) else None
    except Exception as error:  # whatever a file made by others can make torch raise
        raise TrainingError(f"{file} is damaged, or no checkpoint ({type(error).__name__})") from error
    step = content.get("steps_done") if isinstance(content, dict) else None
    if not isinstance(step, int) or not isinstance(content.get("state_dict"), Mapping):
        raise TrainingError(f"{file} is no checkpoint of a training")
    if bad is not None:
        raise TrainingError(f"{file} is damaged ({bad} is not finite)")
    return step


def _has_sum(file: Path) -> bool:
    """Compare the checksum behind an archive with its content; archives of earlier versions have none."""
    length = len(_TRAILER % 0)
    with file.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - length))
        trailer = stream.read()
        if not trailer.startswith(_TRAILER[:-6]):
            return False
        stream.seek(0)
        crc, left = 0, size - length
        while part := stream.read(min(_READ_BYTES, left)):
            crc, left = zlib.crc32(part, crc), left - len(part)
    if trailer != _TRAILER % crc:
        raise TrainingError(f"{file} is damaged (its checksum is wrong)")
    return True


def _check_parts(file: Path, *, sums: bool) -> None:
    """Refuse an archive that torch has not written, which could unpack to any size, or whose parts are not whole."""
    try:
        damage = archive_damage(file, sums=sums)
    except OSError:
        raise
    except Exception as error:  # damage can show anywhere in the archive's tables
        empty = file.stat().st_size == 0
        raise TrainingError(f"{file} is {'empty' if empty else 'damaged or cut short, or no checkpoint'}") from error
    if damage:
        raise TrainingError(f"{file} is damaged ({damage})")


def _not_finite(checkpoint: Mapping[str, Any]) -> str | None:
    """Return the name of a tensor to go on from that holds NaN or infinity."""
    for part in _STATE:
        for name, tensor in _tensors(checkpoint.get(part), part, set()):
            values = _stored(tensor)
            # The sum is one pass over memory, and finite unless a value is not or it overflows.
            if values.is_floating_point() and not values.sum().isfinite() and not values.isfinite().all():
                return name
    return None


def _stored(tensor: Tensor) -> Tensor:
    """Return the values that a tensor stores, of which it can repeat one as often as it likes."""
    if tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes():
        return tensor
    return torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(tensor.untyped_storage())


def _tensors(value: Any, name: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Walk through nested mappings and lists, each once: a file can hold one in itself."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
        seen.add(id(value))
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _tensors(inner, f"{name}.{key}", seen)
