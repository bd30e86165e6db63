"""Reading a published checkpoint without running, instantiating or trusting anything in it.

A checkpoint of PyTorch is a zip archive of raw numbers and one pickle, and a pickle is a program. Three walls stand
before that program:

1. The archive must be whole, and the pickle may name nothing beyond a short list.
2. PyTorch's restricted reader (``weights_only=True``) interprets it, with that list alone allowed. What the list holds
   besides tensors are names of OmegaConf, NumPy and Lightning; `Inert` stands for all of them.
3. Only tensors and plain numbers that were requested by name are returned.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from difftumor.errors import DiffTumorError, PublishedFileError
from difftumor.exchange.published import check_published_file
from difftumor.files.archives import archive_damage
from difftumor.files.checksums import sha256_of

ZIP_MAGIC = b"PK\x03\x04"
# The pickle holds names and shapes; that of the largest published file takes less than a hundredth of this.
LARGEST_PICKLE = 64 * 2**20
LARGEST_NUMBER = 2**53


class Inert:
    """Stands for a class or function of other packages: takes any arguments and any state, and keeps none of it."""

    __slots__ = ()

    def __new__(cls, *_: object, **__: object) -> Inert:
        """Return an empty object."""
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        """Drop the state; without this method, the unpickler would set attributes."""


def _empty_dict(*_: object) -> dict[Any, Any]:
    """Stand for ``collections.defaultdict``, whose items the unpickler sets one by one."""
    return {}


# What the pickles of a DictConfig (OmegaConf 2.0 to 2.3), of Lightning's callbacks and of NumPy's numbers and arrays
# name.
_INERT_NAMES = (
    *(f"omegaconf.{name}" for name in ("dictconfig.DictConfig", "listconfig.ListConfig")),
    *(f"omegaconf.base.{name}" for name in ("ContainerMetadata", "Metadata", "UnionNode")),
    *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "Boolean", "Bytes", "Float", "Integer", "Path", "String")),
    *("typing.Any", "typing.Union", "_operator.getitem"),  # the last makes Union[int, str] of Union
    *(f"builtins.{name}" for name in ("dict", "list", "tuple", "int", "float", "bool", "str", "bytes")),
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    *(f"pathlib.{kind}Path" for kind in ("", "Posix", "Windows")),
    *(f"numpy.{kind}" for kind in ("dtype", "ndarray")),
    *(f"numpy.{core}.multiarray.{made}" for core in ("core", "_core") for made in ("scalar", "_reconstruct")),
)
STAND_INS: Mapping[str, Any] = {"collections.defaultdict": _empty_dict, **dict.fromkeys(_INERT_NAMES, Inert)}
# What PyTorch's reader understands by itself is more; tables of tensors, and the states of optimizers and schedulers
# beside them, need no more than this.
TENSOR_NAMES = frozenset(
    {
        "collections.OrderedDict",
        "collections.Counter",
        "builtins.set",
        "torch.Size",
        "torch.device",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
        "_codecs.encode",  # bytes, which NumPy's numbers consist of
        *(
            f"torch.{kind}Storage"
            for kind in ("Bool", "Byte", "Char", "Short", "Int", "Long", "Half", "BFloat16", "Float", "Double")
        ),
    }
)


@dataclass(frozen=True, eq=False)
class PublishedFile:
    """The requested parts of a published checkpoint.

    Attributes:
        path: The file.
        sha256: Of its bytes.
        tables: Tables of tensors, by the name that the file gives them; the tensors are mapped from the file.
        numbers: Numbers, by name; those that the file lacks are left out.
        unread: Names of everything else at the top of the file.
    """

    path: Path
    sha256: str
    tables: Mapping[str, Mapping[str, Tensor]]
    numbers: Mapping[str, int | float]
    unread: tuple[str, ...]


def read_published(path: Path | str, *, tables: Sequence[str], numbers: Sequence[str] = ()) -> PublishedFile:
    """Read tables of tensors and numbers from the top of a checkpoint.

    Args:
        path: A file of ``torch.save``, in the zip format of PyTorch 1.6 and later.
        tables: Names of the tables of tensors that must be there.
        numbers: Names of numbers that may be there.

    Raises:
        PublishedFileError: The file is missing, damaged, of the older format, wants code to run, or lacks a table.
    """
    file = Path(path)
    check_published_file(file)
    with file.open("rb") as stream:
        if stream.read(len(ZIP_MAGIC)) != ZIP_MAGIC:
            raise PublishedFileError(
                f"{file} is not a checkpoint in the zip format of PyTorch 1.6 and later, the only one that is read: "
                "give the file as published."
            )
    # Before the size of an archive that PyTorch has not written can surprise.
    with _damage_named(file, "is damaged or cut off"):
        damage = archive_damage(file)
    if damage:
        raise PublishedFileError(f"{file} is damaged ({damage}): download the published file again.")
    with _damage_named(file, "is a zip archive, but not a checkpoint of PyTorch"):
        instructions = _pickle(file)
    with _damage_named(file, "holds a pickle that cannot be read"):
        _check_names(instructions, file)
    with _damage_named(file, "holds what a table of weights does not need"), _stand_ins_alone():
        # Mapped from the file, so that a storage can't reach beyond it, whatever size the pickle claims.
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    return _handed_on(content, file, tables=tables, numbers=numbers)


@contextmanager
def _damage_named(file: Path, what: str) -> Iterator[None]:
    """Say in one sentence what is wrong, whatever is raised: the bytes of a damaged file can raise anything."""
    try:
        yield
    except DiffTumorError:
        raise
    except Exception as error:
        # PyTorch wraps its reason in advice to load the file unsafely, which must not be passed on.
        cause = error.__context__ if "weights_only" in str(error) and error.__context__ else error
        lines = str(cause).splitlines() or [type(cause).__name__]
        raise PublishedFileError(f"{file} {what} ({_shown(lines[0])}): download the published file again.") from error


def _pickle(file: Path) -> bytes:
    """Return the pickle as PyTorch finds it: an archive can be made so that other readers find another one."""
    archive = torch._C.PyTorchFileReader(str(file))
    if "constants.pkl" in archive.get_all_records():
        raise PublishedFileError(f"{file} is a TorchScript program, not a checkpoint: give the file as published.")
    size = archive.get_record_size("data.pkl")
    if size > LARGEST_PICKLE:
        raise PublishedFileError(
            f"{file} describes its weights in {size} bytes, more than any published file: download it again."
        )
    return archive.get_record("data.pkl")


def _check_names(instructions: bytes, file: Path) -> None:
    """Refuse a pickle that names anything beyond the list; reads the instructions, follows none."""
    for opcode, argument, _ in pickletools.genops(instructions):
        if opcode.name == "PROTO" and argument != 2:
            raise PublishedFileError(
                f"{file} is written with pickle protocol {argument}, where torch.save writes 2: "
                "download the published file again."
            )
        if opcode.name == "GLOBAL" and (name := _python_3_name(str(argument))) not in TENSOR_NAMES | STAND_INS.keys():
            raise PublishedFileError(
                f"{file} is refused, because it wants {_shown(name)} to be used, which no table of weights needs: "
                "nothing of it was run; download the published file again."
            )


def _python_3_name(argument: str) -> str:
    """Return ``"module name"`` as ``"module.name"``; protocol 2 writes built-in types as Python 2 named them."""
    module, _, name = argument.partition(" ")
    if module == "__builtin__":
        module, name = "builtins", {"long": "int", "unicode": "str"}.get(name, name)
    return f"{module}.{name}"


@contextmanager
def _stand_ins_alone() -> Iterator[None]:
    """Allow the stand-ins, and none of the classes that other packages have put on PyTorch's list by being imported."""
    others = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        with torch.serialization.safe_globals([(stand_in, name) for name, stand_in in STAND_INS.items()]):
            yield
    finally:
        torch.serialization.add_safe_globals(others)


def _handed_on(content: object, file: Path, *, tables: Sequence[str], numbers: Sequence[str]) -> PublishedFile:
    top = _items(content, file, "the file")
    missing = [name for name in tables if name not in top]
    if missing:
        found = ", ".join([*list(top)[:8], *["…"] * (len(top) > 8)])
        raise PublishedFileError(
            f"{file} holds no {missing[0]!r} (it holds {found or 'nothing'}): "
            "give the checkpoint of the network that is to be imported."
        )
    plain = {name: top[name] for name in numbers if name in top}
    kept = {name: value for name, value in plain.items() if _is_number(value)}
    return PublishedFile(
        path=file,
        sha256=sha256_of(file),
        tables={name: _tensors(top[name], file, name) for name in tables},
        numbers=kept,
        unread=tuple(name for name in top if name not in tables and name not in kept),
    )


def _items(table: object, file: Path, what: str) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise PublishedFileError(f"{file}: {what} is not a table of names: download the published file again.")
    # The methods of dict itself: the pickle may have put attributes of the same names on an OrderedDict.
    items = dict(dict.items(table))
    strange = [name for name in items if type(name) is not str or not name.isprintable() or len(name) > 300]
    if strange:
        raise PublishedFileError(
            f"{file}: {what} has an entry with the name {_shown(strange[0])}: download the published file again."
        )
    return items


def _tensors(table: object, file: Path, what: str) -> dict[str, Tensor]:
    tensors = {}
    for name, value in _items(table, file, what).items():
        if type(value) not in (Tensor, nn.Parameter):
            raise PublishedFileError(f"{file}: {what} holds {name}, which is not a plain tensor: download it again.")
        tensors[name] = value.detach()
    return tensors


def _is_number(value: object) -> bool:
    # False for NaN.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST_NUMBER


def _shown(text: object) -> str:
    """Return text of the file for a message: short, and without signs that would act on a terminal."""
    shown = repr(text)
    return shown if len(shown) <= 120 else f"{shown[:117]}..."
