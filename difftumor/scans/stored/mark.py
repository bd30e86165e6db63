"""The mark of made tumors in a NIfTI header: a sentence in ``descrip``, and a comment that says which tumors.

The comment is an extension of the header (code 6, plain text); other programs skip what they do not know.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import nibabel as nib
import numpy as np

from difftumor.files.texts import parse_json
from difftumor.scans.stored.header import end_of_extensions

_KEY = "difftumor_synthetic_tumors"
_COMMENT = 6
_SENTENCE = "synthetic tumors (difftumor)"
# Where voxels may begin, and the sizes of extensions: multiples of this many bytes.
_ALIGNED = 16


def mark_preamble(preamble: bytes, header: nib.nifti1.Nifti1Header, content: Mapping[str, Any]) -> bytes:
    """Return all bytes before the voxels of a single NIfTI file, marked; extensions that are there stay.

    Args:
        preamble: The bytes as they are.
        header: What was read from them.
        content: Plain values that say which tumors were made.
    """
    size, end = header.sizeof_hdr, end_of_extensions(preamble, header)
    marked = type(header)(preamble[:size], endianness=header.endianness, check=False)
    text = _text(content).encode()
    length = -(-(8 + len(text)) // _ALIGNED) * _ALIGNED
    extension = (struct.pack(f"{header.endianness}2i", length, _COMMENT) + text).ljust(length, b"\0")
    marked["vox_offset"] = -(-(end + length) // _ALIGNED) * _ALIGNED
    marked["descrip"] = _described(marked)
    filled: bytes = marked.binaryblock + b"\1\0\0\0" + preamble[size + 4 : end] + extension
    return filled.ljust(int(marked["vox_offset"]), b"\0")


def mark_header(header: nib.nifti1.Nifti1Header, content: Mapping[str, Any]) -> None:
    """Mark a header that nibabel will write."""
    header["descrip"] = _described(header)
    header.extensions.append(nib.nifti1.Nifti1Extension(_COMMENT, _text(content).encode()))


def read_marks(header: nib.nifti1.Nifti1Header) -> list[dict[str, Any]]:
    """Return what marks in a header say, the oldest first; none for an image without made tumors."""
    return [mark for extension in getattr(header, "extensions", ()) for mark in _mark_in(extension)]


def is_described(header: nib.nifti1.Nifti1Header) -> bool:
    """Whether ``descrip`` has the sentence, which programs keep that drop comments."""
    return _SENTENCE.encode() in bytes(np.asarray(header["descrip"]).item())


def unmark_header(header: nib.nifti1.Nifti1Header) -> None:
    """Take marks from the header of another image, for an image that nibabel will write."""
    header.extensions[:] = [each for each in header.extensions if not _mark_in(each)]
    if is_described(header):
        before = bytes(np.asarray(header["descrip"]).item()).rstrip(b"\0")
        header["descrip"] = before[: before.index(_SENTENCE.encode())].removesuffix(b"; ")


def _mark_in(extension: Any) -> list[dict[str, Any]]:
    """Return what a mark says, as the only item; none if an extension is no mark."""
    content = extension.get_content()
    text = content.decode("utf-8", "replace") if isinstance(content, bytes) else str(content)
    if extension.get_code() != _COMMENT or _KEY not in text:
        return []
    try:
        stated = parse_json(text.rstrip("\0"))
    except ValueError:
        return []  # a comment of somebody else
    found = stated.get(_KEY) if isinstance(stated, dict) else None
    return [found] if isinstance(found, dict) else []


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps({_KEY: dict(content)}, allow_nan=False)


def _described(header: nib.nifti1.Nifti1Header) -> bytes:
    """Return ``descrip`` with the sentence; what was there before is cut if there is no room for both."""
    before = bytes(np.asarray(header["descrip"]).item()).rstrip(b"\0")
    sentence = _SENTENCE.encode()
    if sentence in before:
        return before
    # The last byte stays free: ITK takes it for the end of the text.
    room = header.template_dtype["descrip"].itemsize - len(sentence) - 3
    return before[:room] + b"; " + sentence if before else sentence
