"""Damaged files, and what of a sound file is handed on."""

import io
import pickle
import struct
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Union

import numpy as np
import omegaconf
import pytest
import torch
from omegaconf import OmegaConf

from difftumor.errors import PublishedFileError
from tests.exchange.published.files import config, lightning, saved
from tests.exchange.published.pickles import STATE, archive, checkpoint, read


def test_sound_files_hand_on_tensors_and_numbers(tmp_path):
    callbacks = {
        # Lightning before 1.5 named callbacks by their classes.
        torch.nn.Identity: {"best_model_score": torch.tensor(1.0)},
    }
    assert "callbacks" in lightning(STATE)
    found = read(saved(lightning(STATE), tmp_path / "a.ckpt"))
    assert {name: value.tolist() for name, value in found.tables["state_dict"].items()} == {
        name: value.tolist() for name, value in STATE.items()
    }
    assert found.numbers == {"epoch": 6, "global_step": 200_000}
    assert found.unread[:2] == ("pytorch-lightning_version", "loops")
    assert len(found.sha256) == 64
    with pytest.raises(PublishedFileError, match=r"torch\.nn\.modules\.linear\.Identity"):
        read(saved(lightning(STATE, callbacks=callbacks), tmp_path / "a.ckpt"))


def test_classes_of_lightning_name_callbacks(tmp_path):
    name = b"cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n"
    assert read(archive(tmp_path / "a.ckpt", checkpoint(b"}" + name + b"}s"))).unread == ("extra",)


def every_node() -> omegaconf.DictConfig:
    """A config of every type that OmegaConf has, but enumerations, which are classes of one's own."""
    values = {
        omegaconf.AnyNode: None,
        omegaconf.BooleanNode: True,
        omegaconf.BytesNode: b"",
        omegaconf.FloatNode: 0.5,
        omegaconf.IntegerNode: 1,
        omegaconf.PathNode: Path("/logs"),
        omegaconf.StringNode: "a",
    }
    made = omegaconf.DictConfig({kind.__name__: kind(value) for kind, value in values.items()})
    made.union = omegaconf.UnionNode(1, Union[int, str])  # noqa: UP007 -- as Python 3.9 and older have it
    made.numbers = omegaconf.ListConfig([1.0], element_type=float)
    made.words = omegaconf.DictConfig({"a": "b"}, key_type=str, element_type=str)
    return made


@pytest.mark.parametrize(
    "content",
    [
        Path("/logs/run"),
        OmegaConf.create({"folder": Path("/logs"), "bytes": b"12", "list": [1, "b", None, {"c": 2.5}]}),
        every_node(),
        torch.device("cuda", 0),
        [torch.Size([1, 2]), {1, 2}],
        np.arange(3.0),
        torch.optim.lr_scheduler.MultiStepLR(torch.optim.SGD([torch.ones(1)], lr=1), [3, 5]).state_dict(),
    ],
    ids=["path", "config", "typed config", "device", "sizes and sets", "array", "scheduler"],
)
def test_what_trainings_put_beside_the_weights_is_no_reason_to_refuse(tmp_path, content):
    found = read(saved({"state_dict": STATE, "hyper_parameters": content}, tmp_path / "a.ckpt"))
    assert found.unread == ("hyper_parameters",)


def test_numbers_of_numpy_are_left_out(tmp_path):
    content = {"state_dict": STATE, "epoch": np.float64(0.5), "global_step": True}
    found = read(saved(content, tmp_path / "a.ckpt"))
    assert (found.numbers, found.unread) == ({}, ("epoch", "global_step"))
    content = {"state_dict": STATE, "epoch": float("nan"), "global_step": 10**30}
    assert read(saved(content, tmp_path / "a.ckpt")).numbers == {}


def test_the_file_is_not_changed(tmp_path):
    path = saved({"state_dict": STATE}, tmp_path / "a.ckpt")
    before = path.read_bytes()
    read(path).tables["state_dict"]["b"].fill_(7)
    assert path.read_bytes() == before


def test_parameters_and_half_precision_are_tensors(tmp_path):
    state = {"a": torch.nn.Parameter(torch.ones(2)), "b": torch.ones(2).half(), "c": torch.ones(4)[::2]}
    found = read(saved({"state_dict": state}, tmp_path / "a.ckpt")).tables["state_dict"]
    assert all(type(value) is torch.Tensor and not value.requires_grad for value in found.values())
    assert found["c"].tolist() == [1, 1]


@pytest.mark.parametrize("kind", [torch.Tensor.to_sparse, lambda x: torch.empty_like(x, device="meta"), lambda x: 3.0])
def test_other_tensors_are_refused(tmp_path, kind):
    with pytest.raises(PublishedFileError):
        read(saved({"state_dict": {"a": kind(torch.ones(2, 2))}}, tmp_path / "a.ckpt"))


@pytest.mark.parametrize("name", [3, "\x1b[2J", "a\nb", "x" * 301, ("a",), "\u202e"])
def test_names_are_printable(tmp_path, name):
    for content in ({"state_dict": {name: torch.ones(1)}}, {"state_dict": {}, name: 1}):
        with pytest.raises(PublishedFileError, match="entry with the name") as caught:
            read(saved(content, tmp_path / "a.ckpt"))
        assert str(caught.value).isprintable()


def test_archives_of_others_are_refused(tmp_path):
    with pytest.raises(PublishedFileError, match="There is no file"):
        read(tmp_path / "none.ckpt")
    with pytest.raises(PublishedFileError, match="There is no file"):
        read(tmp_path)
    for data in (b"", b"PK", b"no checkpoint at all", pickle.dumps({"state_dict": {}})):
        (tmp_path / "a.ckpt").write_bytes(data)
        with pytest.raises(PublishedFileError, match="not a checkpoint in the zip format"):
            read(tmp_path / "a.ckpt")
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as file:
        file.writestr("data.pkl", b"")
    with pytest.raises(PublishedFileError, match="not a checkpoint of PyTorch"):
        read(tmp_path / "a.ckpt")
    with pytest.raises(PublishedFileError, match="TorchScript program"):
        read(archive(tmp_path / "a.ckpt", checkpoint(b"N"), {"constants.pkl": b"N."}))
    with pytest.raises(PublishedFileError, match="in 67108865 bytes, more than"):
        read(archive(tmp_path / "a.ckpt", bytes(2**26 + 1)))
    bomb = archive(tmp_path / "a.ckpt", b"\0" * 10**6, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(PublishedFileError, match="compressed"):
        read(bomb)
    with pytest.warns(UserWarning, match="Duplicate"):
        twice = archive(tmp_path / "a.ckpt", checkpoint(b"N"), {"data.pkl": b"N."})
    with pytest.raises(PublishedFileError, match="twice"):
        read(twice)
    with pytest.raises(PublishedFileError, match=r"no 'state_dict' \(it holds epoch, model\)"):
        read(saved({"epoch": 1, "model": STATE}, tmp_path / "a.ckpt"))
    with pytest.raises(PublishedFileError, match=r"it holds 0, 1, 2, 3, 4, 5, 6, 7, …\)"):
        read(saved({str(number): 1 for number in range(9)}, tmp_path / "a.ckpt"))
    with pytest.raises(PublishedFileError, match="not a table of names"):
        read(saved([STATE], tmp_path / "a.ckpt"))


@pytest.fixture(scope="module")
def sound():
    stream = io.BytesIO()
    torch.save({"state_dict": STATE, "epoch": 3, "hyper_parameters": config()}, stream)
    return stream.getvalue()


def test_cut_files_are_refused(tmp_path, sound):
    for size in [*range(100), *range(100, len(sound), 61), len(sound) - 1]:
        (tmp_path / "a.ckpt").write_bytes(sound[:size])
        with pytest.raises(PublishedFileError):
            read(tmp_path / "a.ckpt")


def test_damaged_weights_are_refused(tmp_path, sound):
    at = sound.index(struct.pack("<f", 5.0))
    (tmp_path / "a.ckpt").write_bytes(sound[:at] + b"\x01" + sound[at + 1 :])
    with pytest.raises(PublishedFileError, match=r"the checksum of '.*/data/0' differs"):
        read(tmp_path / "a.ckpt")


def refused_or_unharmed(path: Path) -> None:
    with suppress(PublishedFileError):
        assert all(type(value) is torch.Tensor for value in read(path).tables["state_dict"].values())


def test_any_changed_byte_is_refused_or_harmless(tmp_path, sound):
    random = np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(sound)
        data[random.integers(len(data))] = random.integers(256)
        (tmp_path / "a.ckpt").write_bytes(data)
        refused_or_unharmed(tmp_path / "a.ckpt")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_any_changed_instruction_is_refused_or_harmless(tmp_path, sound):
    """Pickles that are damaged behind sound checksums."""
    with zipfile.ZipFile(io.BytesIO(sound)) as file:
        records = {name.partition("/")[2]: file.read(name) for name in file.namelist()}
    instructions = records.pop("data.pkl")
    random = np.random.default_rng(1)
    for _ in range(400):
        data = bytearray(instructions)
        for _ in range(random.integers(1, 4)):
            data[random.integers(len(data))] = random.integers(256)
        refused_or_unharmed(archive(tmp_path / "a.ckpt", bytes(data), records))
