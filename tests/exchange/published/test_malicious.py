"""Files that want to run something, and what their pickles can do to the stand-ins: nothing."""

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import omegaconf
import pytest
import torch

from difftumor.errors import PublishedFileError
from difftumor.exchange.published.reading import STAND_INS, Inert
from tests.exchange.published.files import config, lightning, saved
from tests.exchange.published.pickles import (
    DICT_CONFIG,
    STATE,
    archive,
    checkpoint,
    read,
    tensor,
    text,
    two_directories,
)


class Payload:
    """Touches a file when it is unpickled carelessly."""

    def __init__(self, marker: Path, call=os.system) -> None:
        self.marker, self.call = marker, call

    def __reduce__(self):
        return self.call, (f"touch '{self.marker}'" if self.call is os.system else f"open({str(self.marker)!r}, 'w')",)


class Posing(Payload):
    """Says that it is a DictConfig."""


Posing.__module__, Posing.__qualname__, Posing.__name__ = "omegaconf.dictconfig", "DictConfig", "DictConfig"


MAKERS = {"shell": Payload, "posing": Posing, "eval": lambda marker: Payload(marker, eval)}


def in_the_content(payload: Payload):
    made = config()
    made._content["model"]._content["lr"] = payload
    return made


HIDING_PLACES = {
    "hyper-parameters": lambda payload: {"hyper_parameters": payload},
    "inside the DictConfig": lambda payload: {"hyper_parameters": {"cfg": in_the_content(payload)}},
    "callbacks": lambda payload: {"callbacks": {"ModelCheckpoint": {"monitor": payload}}},
    "optimizer": lambda payload: {"optimizer_states": [payload]},
    "among the weights": lambda payload: {"state_dict": {**STATE, "c": payload}},
    "instead of the weights": lambda payload: {"state_dict": payload},
    "beside what is read": lambda payload: {"zzz": [payload]},
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("place", HIDING_PLACES)
def test_payload_is_refused_and_does_not_run(tmp_path, place, make):
    marker = tmp_path / "marker"
    path = saved({**lightning(STATE), **HIDING_PLACES[place](make(marker))}, tmp_path / "bad.ckpt")
    with pytest.raises(PublishedFileError, match=r"it wants '(posix\.system|builtins\.eval)' .* nothing of it was run"):
        read(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # the payload is a real one
    assert marker.exists()


def test_payload_in_the_legacy_format_is_refused(tmp_path):
    marker = tmp_path / "marker"
    content = {**lightning(STATE), "hyper_parameters": Payload(marker)}
    path = saved(content, tmp_path / "bad.ckpt", _use_new_zipfile_serialization=False)
    with pytest.raises(PublishedFileError, match=r"zip format of PyTorch 1\.6"):
        read(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()


def test_payload_in_newer_pickle_protocols_is_refused(tmp_path):
    marker = tmp_path / "marker"
    for protocol in (3, 4, 5):
        path = saved({"state_dict": Payload(marker)}, tmp_path / "bad.ckpt", pickle_protocol=protocol)
        with pytest.raises(PublishedFileError, match=f"pickle protocol {protocol}"):
            read(path)
    # One that claims to be of protocol 2.
    path = archive(tmp_path / "bad.ckpt", b"\x80\x02" + pickle.dumps(Payload(marker), 4)[2:])
    with pytest.raises(PublishedFileError, match="Unsupported operand 149"):
        read(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "name",
    [
        "builtins bytearray",  # takes all memory with a number as argument
        "builtins complex",
        "torch Tensor",
        "torch._tensor _rebuild_from_type_v2",
        "torch._utils _rebuild_wrapper_subclass",
        "torch.storage UntypedStorage",
        "monai.data.meta_tensor MetaTensor",  # MONAI puts it on PyTorch's list
        "omegaconf OmegaConf",
        "omegaconf.dictconfig DictConfig.__init__",
        "builtins getattr",
        "__builtin__ getattr",
        "os system",
        "sys exit",
        "difftumor.exchange.published.reading Inert",
    ],
)
def test_names_beyond_the_list_are_refused(tmp_path, name):
    module, attribute = name.split()
    path = archive(tmp_path / "bad.ckpt", checkpoint(f"c{module}\n{attribute}\n".encode() + b"K\x01\x85R"))
    expected = f"{module.replace('__builtin__', 'builtins')}.{attribute}"
    with pytest.raises(PublishedFileError) as caught:
        read(path)
    assert f"it wants {expected!r}" in str(caught.value)


def test_the_pickle_that_is_checked_is_the_one_that_pytorch_reads(tmp_path):
    hidden = checkpoint(b"cbuiltins\nbytearray\nK\x01\x85R" + text("x" * 400) + b"\x86")
    path = two_directories(tmp_path / "bad.ckpt", checkpoint(b"N"), hidden)
    with zipfile.ZipFile(path) as file:  # nothing that Python sees is wrong
        assert file.testzip() is None
        assert file.read("archive/data.pkl") == checkpoint(b"N")
    assert len(torch.load(path, weights_only=True)["extra"]) == 2
    with pytest.raises(PublishedFileError, match=r"it wants 'builtins\.bytearray'"):
        read(path)


GADGETS = {
    "items set on a stand-in": DICT_CONFIG + b")R" + text("a") + b"K\x01s",
    "many items set on a stand-in": DICT_CONFIG + b")R(" + text("a") + b"K\x01u",
    "items appended to a stand-in": DICT_CONFIG + b")RK\x01a",
    "a stand-in called": DICT_CONFIG + b")R" + b")R",
    "state built on the stand-in itself": DICT_CONFIG + b"}" + text("__new__") + b"Nsb",
    "state built on a text": text("a") + b"}b",
    "a function taken for a class": b"ccollections\ndefaultdict\n)\x81",
    "a new object of a text": text("a") + b")\x81",
    "a method of an allowed class": b"ccollections\nOrderedDict.fromkeys\n" + text("a") + b"\x85R",
    "storages of another kind": b"(" + text("module") + b"tQ",
    "no storage at all": b"ctorch._utils\n_rebuild_tensor_v2\n(" + DICT_CONFIG + b")RK\x00))NNtR",
    "a value is missing": b"",
    "an unknown memo": b"h\x07",
}


@pytest.mark.parametrize("gadget", GADGETS)
def test_gadgets_on_stand_ins_are_refused(tmp_path, gadget):
    with pytest.raises(PublishedFileError) as caught:
        read(archive(tmp_path / "bad.ckpt", checkpoint(GADGETS[gadget])))
    assert "\n" not in str(caught.value)
    assert "trust" not in str(caught.value)  # PyTorch's advice to load unsafely is not passed on


@pytest.mark.parametrize(
    "state",
    [
        b"}" + text("__class__") + b"cnumpy\ndtype\ns",
        b"N}" + text("__class__") + b"cnumpy\ndtype\ns\x86",
        b"}" + text("__reduce__") + text("os.system") + b"s",
    ],
)
def test_stand_ins_keep_no_state_and_take_any_argument(tmp_path, state):
    called = DICT_CONFIG + text("touch x") + b"\x85R" + state + b"b"
    new = DICT_CONFIG + text("touch x") + b"\x85\x81" + state + b"b"
    for made in (called, new):
        assert read(archive(tmp_path / "x.ckpt", checkpoint(made))).unread == ("extra",)


def test_stand_ins_are_empty():
    made = Inert(1, 2, a=3)
    made.__setstate__({"a": 1})
    assert not hasattr(made, "__dict__")
    with pytest.raises(AttributeError):
        made.a = 1
    assert {type(stand_in(*arguments)) for stand_in in STAND_INS.values() for arguments in ((), (1, "a"))} == {
        Inert,
        dict,
    }


def test_stand_ins_never_come_out(tmp_path):
    for wrapped in (DICT_CONFIG, DICT_CONFIG + b")R", b"}" + text("a") + DICT_CONFIG + b")Rs"):
        with pytest.raises(PublishedFileError, match=r"not a table of names|not a plain tensor"):
            read(archive(tmp_path / "bad.ckpt", checkpoint(b"N", state=wrapped)))
    number = b"\x80\x02}(" + text("state_dict") + b"}" + text("epoch") + DICT_CONFIG + b")Ru."
    found = read(archive(tmp_path / "x.ckpt", number))
    assert (found.numbers, found.unread) == ({}, ("epoch",))


def test_what_others_allow_is_neither_used_nor_lost(tmp_path):
    """A program may trust classes of the same names; they must not be made here."""

    def spy(_: int) -> type:
        return type("Spy", (), {"__setstate__": lambda *_: pytest.fail("a class of others was made")})

    # PyTorch keeps them in a set, whose order is random: with so many, one of them would come after ours.
    spies = [(spy(number), "omegaconf.dictconfig.DictConfig") for number in range(50)]
    good = saved(lightning(STATE), tmp_path / "good.ckpt")
    with torch.serialization.safe_globals([*spies, os.system]):
        before = set(torch.serialization.get_safe_globals())
        read(good)
        with pytest.raises(PublishedFileError, match="posix"):
            read(saved({"state_dict": Payload(tmp_path / "marker")}, tmp_path / "bad.ckpt"))
        with pytest.raises(PublishedFileError, match="Can only SETITEM"):  # while the stand-ins are allowed
            read(archive(tmp_path / "bad.ckpt", checkpoint(GADGETS["items set on a stand-in"])))
        assert set(torch.serialization.get_safe_globals()) == before
    assert not (tmp_path / "marker").exists()


def test_no_environment_variable_turns_safety_off(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    made = DICT_CONFIG + b")R" + text("a") + b"K\x01s"
    with pytest.raises(PublishedFileError, match="Can only SETITEM"):
        read(archive(tmp_path / "bad.ckpt", checkpoint(made)))


def test_no_config_is_instantiated(tmp_path, monkeypatch):
    path = saved(lightning(STATE, hyper_parameters=config(), hparams_type=omegaconf.DictConfig), tmp_path / "a.ckpt")
    for kind in (omegaconf.DictConfig, omegaconf.ListConfig, omegaconf.AnyNode):
        monkeypatch.setattr(kind, "__setstate__", lambda *_: pytest.fail("a config was made"), raising=False)
    with pytest.raises(pytest.fail.Exception):
        torch.load(path, weights_only=False)
    read(path)


def test_storages_do_not_reach_beyond_the_file(tmp_path):
    numbers = np.arange(4, dtype=np.float32).tobytes()
    good = archive(tmp_path / "a.ckpt", checkpoint(b"N", tensor(4)), {"data/0": numbers})
    assert read(good).tables["state_dict"]["a"].tolist() == [0, 1, 2, 3]
    for count, offset in ((2**28, 0), (4, 2**20), (4, -1), (-4, 0)):
        with pytest.raises(PublishedFileError):
            read(archive(tmp_path / "a.ckpt", checkpoint(b"N", tensor(count, offset)), {"data/0": numbers}))


def test_attributes_of_a_table_hide_nothing(tmp_path):
    """The pickle can put a method of its own on an OrderedDict."""
    attributes = b"}(" + b"".join(text(name) + DICT_CONFIG for name in ("items", "keys", "values", "copy")) + b"u"
    state = b"ccollections\nOrderedDict\n)R" + tensor(2)[1:] + attributes + b"b"
    path = archive(tmp_path / "a.ckpt", checkpoint(b"N", state), {"data/0": bytes(8)})
    assert list(read(path).tables["state_dict"]) == ["a"]
