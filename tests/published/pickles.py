"""Checkpoints whose pickles are written by hand, instruction by instruction."""

import struct
import zipfile
from pathlib import Path

import torch

from difftumor.published.reading import PublishedFile, read_published

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
