"""Files that want to run code: nothing of them runs, nothing is imported, and what is refused is named."""

import gzip
import json
import os
import pickle
import sys
import zipfile
import zlib
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import yaml

from difftumor.datasets.caching import CachedOnDisk
from difftumor.datasets.cases import Case, read_cases
from difftumor.datasets.sources import read_label_table
from difftumor.errors import DiffTumorError, PublishedFileError, TrainingError, VolumeError
from difftumor.evaluation.realism.weights import read_weights
from difftumor.evaluation.robustness.dimensions import read_dimensions
from difftumor.files.checksums import sha256_of
from difftumor.models.artifact import load_artifact
from difftumor.scans.nifti import read_ct, read_labels
from difftumor.synthesis.scan.record import read_record
from difftumor.synthesis.spec import read_plan
from stages.autoencoder.losses import PerceptualLoss
from stages.cluster.options import read_cluster
from stages.config.given import Given
from stages.diffusion.latent_cache import LatentCache
from stages.run.checkpoint import DurableCheckpoints, check_checkpoint
from stages.run.folder import RunFolder
from stages.run.run import run_stage
from tests.faults.conftest import config_of
from tests.faults.harm import Payload
from tests.segmentation.makers import make_segmenter
from tests.stages.builds import KINDS, Crash

GOOD = {"state_dict": {"w": torch.arange(4.0)}, "optimizer_states": [{"m": torch.ones(3)}], "steps_done": 4}
PLACES = {
    "among the weights": lambda payload: {**GOOD, "state_dict": {"w": torch.ones(2), "x": payload}},
    "instead of the weights": lambda payload: {**GOOD, "state_dict": payload},
    "in the optimizer": lambda payload: {**GOOD, "optimizer_states": [payload]},
    "in a callback": lambda payload: {**GOOD, "callbacks": {"KeepLastAndBest": payload}},
}


def with_sum(content, file):
    DurableCheckpoints().save_checkpoint(content, file)


def raw(content, file):
    file.write_bytes(pickle.dumps(content))


def legacy(content, file):
    torch.save(content, file, _use_new_zipfile_serialization=False)


WRITERS = {"checksum": with_sum, "zip": torch.save, "legacy": legacy, "pickle": raw}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("place", PLACES)
def test_no_code_in_a_checkpoint_runs(tmp_path, sentinel, monkeypatch, place, writer):
    file = tmp_path / "last.ckpt"
    WRITERS[writer](PLACES[place](Payload(sentinel)), file)
    for variable in ("0", "1"):
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", variable)
        with pytest.raises(TrainingError, match=r"last\.ckpt is damaged"):
            check_checkpoint(file)
        assert not sentinel.exists()
    # The payload is a real one.
    pickle.loads(file.read_bytes()) if writer == "pickle" else torch.load(file, weights_only=False)
    sentinel.rmdir()


def packed(file, *, summed):
    """Pack the archive of a checkpoint, so that a small file unpacks to a large one."""
    content = {**GOOD, "state_dict": {"w": torch.zeros(2**22)}}
    torch.save(content, file)
    with zipfile.ZipFile(file) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    if summed:
        signed(file)
    assert file.stat().st_size < 2**16


def signed(file):
    file.write_bytes(file.read_bytes() + b"\ndifftumor crc32 %08x\n" % zlib.crc32(file.read_bytes()))


def laughing():
    """A list of a billion entries, of which each ten are one."""
    laughs = [torch.ones(1)]
    for _ in range(9):
        laughs = [laughs] * 10
    return {**GOOD, "optimizer_states": laughs}


def endless():
    states: list = [torch.ones(1)]
    states.append(states)
    return {**GOOD, "optimizer_states": states}


CLAIMS = {
    "a list of a billion": laughing,
    "a list in itself": endless,
    "a tensor of a billion billion": lambda: {**GOOD, "state_dict": {"w": torch.ones(1).expand(10**18)}},
    "a sparse tensor": lambda: {**GOOD, "state_dict": {"w": torch.ones(3).to_sparse()}},
    "a tensor of no memory": lambda: {**GOOD, "state_dict": {"w": torch.ones(3, device="meta")}},
}


# Of which there is no more than what is stored; it fits no network.
ACCEPTED = ("a list of a billion", "a list in itself", "a tensor of a billion billion")


@pytest.mark.parametrize("claim", CLAIMS)
def test_what_a_checkpoint_claims_takes_neither_time_nor_memory(tmp_path, claim):
    torch.save(CLAIMS[claim](), tmp_path / "last.ckpt")
    accepted = claim in ACCEPTED
    with nullcontext() if accepted else pytest.raises(TrainingError, match=r"last\.ckpt is damaged"):
        assert check_checkpoint(tmp_path / "last.ckpt") == 4


@pytest.mark.parametrize("summed", [True, False])
def test_a_packed_checkpoint_is_refused_before_it_is_unpacked(tmp_path, summed):
    packed(tmp_path / "last.ckpt", summed=summed)
    with pytest.raises(TrainingError, match=r"last\.ckpt is damaged \(it is compressed"):
        check_checkpoint(tmp_path / "last.ckpt")


READERS = {
    "features": lambda file: read_weights(file),
    "perceptual loss": lambda file: PerceptualLoss(backbone="alex", weights=file),
}


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("writer", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("reader", READERS)
def test_no_code_in_weights_of_other_networks_runs(tmp_path, sentinel, reader, writer, name):
    WRITERS[writer]({"features.0.weight": Payload(sentinel)}, tmp_path / name)
    with pytest.raises((PublishedFileError, TrainingError), match=r"weights\.(pth|safetensors)"):
        READERS[reader](tmp_path / name)


@pytest.mark.parametrize("cache", ["scans", "latents"])
def test_no_code_in_a_cache_runs(tmp_path, sentinel, cache):
    if cache == "latents":
        file = LatentCache(tmp_path).file("key")
        torch.save({"key": Payload(sentinel)}, file)
        assert LatentCache(tmp_path).read("key") is None
        return
    image = tmp_path / "a.nii"
    image.touch()
    read = CachedOnDisk(lambda case: {"image": torch.ones(2)}, lambda case: {}, tmp_path / "cache")
    read(Case("a", image))
    (file,) = (tmp_path / "cache").iterdir()
    torch.save({"image": Payload(sentinel)}, file)
    assert read(Case("a", image))["image"].tolist() == [1, 1]


def tampered(folder, weights=None, **changes):
    """Change the description of an artifact, and make its identity fit."""
    description = json.loads((folder / "config.json").read_text())
    description.pop("identity", None)
    for name, value in changes.items():
        place, _, field = name.partition("__")
        if field:
            description[place][field] = value
        else:
            description[place] = value
    if weights is not None:
        torch.save(weights, folder / "model.safetensors")
        description["weights_sha256"] = sha256_of(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(description))


TARGET = {"_target_": "lethal.attack", "_args_": []}
CLASSES = {
    "another class": {"architecture__name": "lethal.attack"},
    "os.mkdir": {"architecture__name": "os.mkdir", "architecture__path": "sentinel"},
    "a target": {"architecture___target_": "lethal.attack"},
    "a target alone": {"architecture": TARGET},
    "a target as an argument": {"architecture__channels": TARGET},
    "a class as an argument": {"architecture__channels": ["lethal.attack", "lethal.attack"]},
    "a target at the top": {"_target_": "lethal.attack"},
    "a target for a parent": {"parents": {"autoencoder": TARGET}},
    "a target in the preprocessing": {"preprocessing__crop": TARGET},
    "another kind": {"kind": "lethal.attack"},
}


@pytest.mark.parametrize("change", CLASSES)
def test_an_artifact_names_no_class_beyond_the_list(tmp_path, sentinel, change):
    folder = make_segmenter(tmp_path / "segmenter")
    tampered(folder, **CLASSES[change])
    with pytest.raises(DiffTumorError, match=r"segmenter|Architecture|lethal"):
        load_artifact(folder)


def test_weights_of_an_artifact_are_no_pickle(tmp_path, sentinel):
    folder = make_segmenter(tmp_path / "segmenter")
    tampered(folder, weights={"w": Payload(sentinel)})
    with pytest.raises(DiffTumorError, match=r"model\.safetensors"):
        load_artifact(folder)


TAGS = {
    "call": "!!python/object/apply:os.mkdir [SENTINEL]",
    "class": "!!python/object/new:lethal.attack []",
    "name": "!!python/name:lethal.attack ''",
    "module": "!!python/module:lethal ''",
}
TEXTS = {
    "--tumors": read_plan,
    "--dimensions": read_dimensions,
    "label table": read_label_table,
    "cluster": lambda file: read_cluster([f"cluster={file}"]),
    "config.yaml": lambda file: RunFolder(file.parent).stored(),
}


def written(folder, reader, text):
    file = folder / ("config.yaml" if reader == "config.yaml" else "text.yaml")
    file.write_text(f"# Resolved config of a run of stages.\n{text}\n")
    return file


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("reader", TEXTS)
def test_no_tag_of_yaml_makes_an_object(tmp_path, sentinel, reader, tag):
    text = TAGS[tag].replace("SENTINEL", str(sentinel))
    for lines in (text, f"tumors: {text}", f"labels: {{liver: {text}}}"):
        with pytest.raises(DiffTumorError, match=r"(text|config)\.yaml"):
            TEXTS[reader](written(tmp_path, reader, lines))
    assert not sentinel.exists()
    assert "lethal" not in sys.modules
    yaml.unsafe_load(text)  # the tag is a real one
    sentinel.rmdir()
    sys.modules.pop("lethal", None)


TARGETS = {
    "--tumors": (read_plan, {"tumors": [TARGET]}),
    "--dimensions": (read_dimensions, {"size": TARGET}),
    "label table": (read_label_table, {"labels": TARGET}),
    "cluster": (lambda file: read_cluster([f"cluster={file}"]), TARGET),
    "dataset.json": (read_cases, {"training": [TARGET]}),
    "record.json": (read_record, {"format_version": 1, "models": {"a": TARGET}, "tumors": [TARGET]}),
}


@pytest.mark.parametrize("reader", TARGETS)
def test_no_target_is_made(tmp_path, sentinel, reader):
    read, content = TARGETS[reader]
    file = tmp_path / ("dataset.json" if reader == "dataset.json" else "content.yaml")
    file.write_text(json.dumps(content))
    with pytest.raises(DiffTumorError, match=r"(dataset|content)\.|cluster\._target_"):
        read(file)


STORED = {
    "network": {"network": TARGET},
    "optimizer": {"optimizer": {**TARGET, "lr": 1.0}},
    "at the top": {"_target_": "lethal.attack"},
    "of Hydra": {"hydra": {"callbacks": {"a": TARGET}}},
    "of an option": {"perceptual": {"weights": TARGET}},
    "in place of a section": {"codebook": "lethal.attack"},
    "environment": {"data": {"root": "${oc.env:HOME}"}},
    "resolver": {"name": "${oc.create:${lethal.attack:}}"},
}


@pytest.mark.parametrize("change", STORED)
def test_a_stored_config_makes_nothing_when_its_run_goes_on(copied, cohort, tmp_path, sentinel, change):
    folder, _ = copied
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    for name, value in STORED[change].items():
        stored[name] = {**stored[name], **value} if name in stored and isinstance(value, dict) else value
    (folder / "config.yaml").write_text(f"# Resolved config of a run of stages.\n{yaml.safe_dump(stored)}")
    built = []

    def build(options):
        built.append(options)
        raise Crash

    with pytest.raises((Crash, DiffTumorError)):
        run_stage(config_of(cohort, tmp_path), KINDS["autoencoder"], build, given=Given())
    assert "lethal" not in repr(built)
    assert os.environ["HOME"] not in repr(built)


@pytest.mark.parametrize("read", [read_ct, read_labels])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.npy", "a.npz"])
def test_no_pickle_of_numpy_is_read_as_a_scan(tmp_path, sentinel, name, read):
    file, content = tmp_path / name, np.array([Payload(sentinel)] * 400, dtype=object)
    with file.open("wb") if not name.endswith(".gz") else gzip.open(file, "wb") as stream:
        np.savez(stream, content) if name.endswith(".npz") else np.save(stream, content)
    with pytest.raises(VolumeError, match=name):
        read(file)
