"""Checkpoints whose pickles are written by hand, instruction by instruction."""

import struct
import zipfile
from pathlib import Path

import torch

from difftumor.exchange.published.reading import PublishedFile, read_published

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4)}
DICT_CONFIG = b"comegaconf.dictconfig\nDictConfig\n"


def read(path: Path) -> PublishedFile:
    """Read what a checkpoint of Lightning holds."""
    return read_published(path, tables=("state_dict",), numbers=("epoch", "global_step"))


def archive(path: Path, instructions: bytes, records: dict[str, bytes] | None = None, **options) -> Path:
    """A checkpoint with a pickle of one's own."""
    with zipfile.ZipFile(path, "w", **options) as file:
        file.writestr("archive/data.pkl", instructions)
        for name, data in {"version": b"3\n", "byteorder": b"little", **(records or {})}.items():
            file.writestr(f"archive/{name}", data)
    return path


def checkpoint(extra: bytes, state: bytes = b"}") -> bytes:
    """Instructions for ``{"state_dict": <state>, "extra": <extra>}``."""
    return b"\x80\x02}(" + text("state_dict") + state + text("extra") + extra + b"u."


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def tensor(count: int, offset: int = 0) -> bytes:
    """Instructions for a tensor of ``count`` float32 numbers, which the storage is said to hold."""
    number = [b"J" + struct.pack("<i", value) for value in (count, offset)]
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number[0] + b"tQ"
    layout = number[1] + number[0] + b"\x85K\x01\x85"
    return b"}" + text("a") + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + layout + b"\x89NtRs"


def two_directories(path: Path, shown: bytes, hidden: bytes) -> Path:
    """An archive with two tables of contents: Python takes the last one, PyTorch the one at the place that is stated.

    Args:
        path: Where it goes.
        shown: The pickle that Python finds.
        hidden: The pickle that PyTorch finds; longer than the table.
    """
    halves = []
    for pickled in (hidden, shown):
        with zipfile.ZipFile(path, "w") as file:
            for name, data in {"data.pkl": pickled, "version": b"3\n", "byteorder": b"little"}.items():
                file.writestr(f"archive/{name}", data)
            start = file.fp.tell()
        whole = path.read_bytes()
        halves.append((whole[:start], whole[start:-22], whole[-22:]))
    (first, table, end), (second, last_table, _) = halves
    size, place = len(table), len(first) + len(second)
    # Python moves what the last table says by the size of the table before it.
    moved = bytearray(last_table)
    at = 0
    while at < size:
        name_length = struct.unpack_from("<H", moved, at + 28)[0]
        struct.pack_into("<I", moved, at + 42, struct.unpack_from("<I", moved, at + 42)[0] + len(first) - size)
        at += 46 + name_length
    end = end[:16] + struct.pack("<I", place) + end[20:]
    path.write_bytes(first + second + table + moved + end)
    return path
