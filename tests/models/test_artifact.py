"""Artifacts round-trip exactly, and refuse what they cannot vouch for; names of devices."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from difftumor.errors import ArtifactError, ConfigError, DeviceError
from difftumor.files.checksums import sha256_of
from difftumor.models.artifact import Parent, build_network, load_artifact, pick_device, save_artifact
from difftumor.models.artifact_config import read_config
from difftumor.scans.appearance import Appearance, AppearanceRanges

AUTOENCODER = {"name": "vqgan3d", "base_channels": 4, "latent_channels": 2, "codes": 8, "norm_groups": 2}
DENOISER = {
    "name": "factorized_unet",
    "latent_channels": 2,
    "condition_channels": 3,
    "width": 8,
    "multipliers": [1, 2],
    "heads": 2,
    "head_dim": 32,
    "norm_groups": 4,
}
PREPROCESSING = {"spacing_mm": [1.0, 1.0, 1.0], "window_hu": [-175.0, 250.0], "crop": [16, 16, 16]}


def _save_autoencoder(path: Path, **kwargs) -> Path:
    network = build_network(AUTOENCODER)
    return save_artifact(
        path, kind="autoencoder", architecture=AUTOENCODER, network=network, preprocessing=PREPROCESSING, **kwargs
    )


def test_weights_and_description_survive_the_round_trip(tmp_path):
    network = build_network(AUTOENCODER)
    path = save_artifact(
        tmp_path / "ae",
        kind="autoencoder",
        architecture=AUTOENCODER,
        network=network,
        preprocessing=PREPROCESSING,
        organ="liver",
        training={"steps": 3},
        metrics={"psnr_db": 21.5},
    )
    loaded = load_artifact(path, kind="autoencoder")
    assert loaded.config.organ == "liver"
    assert loaded.config.metrics == {"psnr_db": 21.5}
    expected = network.state_dict()
    assert set(expected) == set(loaded.network.state_dict())
    for name, value in loaded.network.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert not loaded.network.training
    assert not any(p.requires_grad for p in loaded.network.parameters())


def test_weights_are_as_readable_as_other_files(tmp_path):
    path = _save_autoencoder(tmp_path / "ae")
    (tmp_path / "plain").write_bytes(b"")
    usual = (tmp_path / "plain").stat().st_mode
    assert {file.stat().st_mode for file in path.iterdir()} == {usual}


def test_parent_is_found_after_both_move_together(tmp_path):
    parent = _save_autoencoder(tmp_path / "a" / "ae")
    save_artifact(
        tmp_path / "a" / "diffusion",
        kind="diffusion",
        architecture=DENOISER,
        network=build_network(DENOISER),
        preprocessing=PREPROCESSING,
        parents={"autoencoder": Parent.at(parent)},
    )
    (tmp_path / "a").rename(tmp_path / "b")
    child = load_artifact(tmp_path / "b" / "diffusion")
    assert child.parent("autoencoder").config.kind == "autoencoder"


def test_a_parent_is_recorded_as_it_was_loaded_not_as_it_is_when_the_child_is_saved(tmp_path):
    parent = load_artifact(_save_autoencoder(tmp_path / "ae")).as_parent
    _save_autoencoder(parent.path)  # trained again meanwhile
    child = save_artifact(
        tmp_path / "diffusion",
        kind="diffusion",
        architecture=DENOISER,
        network=build_network(DENOISER),
        preprocessing=PREPROCESSING,
        parents={"autoencoder": parent},
    )
    assert read_config(child).parents["autoencoder"].identity == parent.identity != read_config(parent.path).identity


def test_changed_parent_is_refused(tmp_path):
    parent = _save_autoencoder(tmp_path / "ae")
    child = save_artifact(
        tmp_path / "diffusion",
        kind="diffusion",
        architecture=DENOISER,
        network=build_network(DENOISER),
        preprocessing=PREPROCESSING,
        parents={"autoencoder": Parent.at(parent)},
    )
    _save_autoencoder(parent)  # other random weights
    with pytest.raises(ArtifactError, match=r"ae is not the autoencoder .* trained with"):
        load_artifact(child).parent("autoencoder")


def test_identity_ignores_provenance_but_not_preprocessing(tmp_path):
    network = build_network(AUTOENCODER)
    arguments = {"kind": "autoencoder", "architecture": AUTOENCODER, "network": network}
    first = save_artifact(tmp_path / "1", preprocessing=PREPROCESSING, metrics={"psnr_db": 1.0}, **arguments)
    second = save_artifact(tmp_path / "2", preprocessing=PREPROCESSING, metrics={"psnr_db": 2.0}, **arguments)
    third = save_artifact(tmp_path / "3", preprocessing={**PREPROCESSING, "window_hu": [-21, 189]}, **arguments)
    assert read_config(first).identity == read_config(second).identity != read_config(third).identity


def ranges():
    """Of two tumors, of which one was too small to be measured."""
    tumors = [(-40.0, 15.0, (-40.0,) * 8 + (0.0,) * 8), (math.nan, math.nan, (math.nan,) * 16)]
    return AppearanceRanges.of([Appearance(contrast_hu=c, sd_hu=s, edge_hu=e, voxels=9) for c, s, e in tumors])


def test_how_real_tumors_look_survives_the_round_trip_and_is_no_part_of_the_identity(tmp_path):
    network = build_network(DENOISER)
    arguments = {"kind": "diffusion", "architecture": DENOISER, "network": network, "preprocessing": PREPROCESSING}
    with_ranges = save_artifact(tmp_path / "with", real_tumors=ranges().to_dict(), **arguments)
    without = save_artifact(tmp_path / "without", **arguments)
    found = read_config(with_ranges).appearance_ranges(with_ranges)
    assert found == ranges()
    assert found.contrast_hu == (-40,) * 7
    assert read_config(with_ranges).identity == read_config(without).identity
    assert read_config(without).real_tumors == {}
    assert read_config(without).appearance_ranges(without) is None


def test_an_artifact_that_knows_no_real_tumors_still_loads(tmp_path):
    path = _save_autoencoder(tmp_path / "ae")
    content = json.loads((path / "config.json").read_text())
    del content["real_tumors"]
    (path / "config.json").write_text(json.dumps(content))
    assert load_artifact(path).config.appearance_ranges(path) is None


def test_real_tumors_that_are_malformed_are_named_with_the_artifact(tmp_path):
    path = _save_autoencoder(tmp_path / "ae", real_tumors={**ranges().to_dict(), "tumors": "two"})
    with pytest.raises(ArtifactError, match=r"ae does not say readably how real tumors look \(tumors is 'two'"):
        read_config(path).appearance_ranges(path)


def test_refuses_wrong_kind_unfinished_missing_and_foreign(tmp_path):
    path = _save_autoencoder(tmp_path / "ae", complete=False)
    with pytest.raises(ArtifactError, match=r"kind 'autoencoder', not 'diffusion': give one made by python -m stages"):
        load_artifact(path, kind="diffusion")
    with pytest.raises(ArtifactError, match="not finished"):
        load_artifact(path)
    assert load_artifact(path, allow_incomplete=True).config.complete is False
    with pytest.raises(ArtifactError, match="no artifact folder at"):
        load_artifact(tmp_path / "nothing")
    with pytest.raises(ArtifactError, match=r"holds no config\.json"):
        load_artifact(tmp_path)


def test_one_flipped_byte_is_noticed(tmp_path):
    path = _save_autoencoder(tmp_path / "ae")
    weights = path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ArtifactError, match="damaged"):
        load_artifact(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, "format version 99"),
        ({"architecture": {"name": "os.system"}}, "'os.system'"),
        ({"surprise": 1}, r"unknown fields \['surprise'\]"),
        ({"architecture": {**AUTOENCODER, "surprise": 1}}, "does not take these arguments"),
        ({"architecture": {**AUTOENCODER, "codes": 9}}, "does not fit"),
        ({"architecture": {**AUTOENCODER, "base_channels": 10**9}}, "states 1000000000, and no side of its tensors is"),
        ({"architecture": {**AUTOENCODER, "levels": 40}}, "does not fit|does not take"),
        ({"architecture": {**AUTOENCODER, "codes": float("nan")}}, "its architecture holds nan"),
        ({"architecture": {**AUTOENCODER, "multipliers": [1] * 99}}, "lists 99 numbers"),
        ({"preprocessing": {**PREPROCESSING, "spacing_mm": [0, 1, 1]}}, r"spacing_mm is \[0, 1, 1\]"),
        ({"preprocessing": {**PREPROCESSING, "spacing_mm": "111"}}, "spacing_mm is '111'"),
        ({"preprocessing": {**PREPROCESSING, "window_hu": [250, -175]}}, "window_hu is .*the lower first"),
        ({"preprocessing": {**PREPROCESSING, "crop": [2000] * 3}}, "crop is .*at most 512³"),
        ({"preprocessing": {**PREPROCESSING, "crop": [-8] * 3}}, "crop is .*positive whole numbers"),
        ({"preprocessing": {**PREPROCESSING, "normalization": "evil"}}, "normalization is 'evil'"),
        ({"preprocessing": {"spacing_mm": [1, 1, 1], "crop": [8, 8, 8]}}, "states no window_hu"),
        ({"organ": 5}, "organ is no text"),
    ],
)
def test_edited_description_is_refused(tmp_path, change, message):
    path = _save_autoencoder(tmp_path / "ae")
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ArtifactError, match=message):
        load_artifact(path)


def test_a_header_of_endless_bytes_with_the_right_checksum_is_refused(tmp_path):
    path = _save_autoencoder(tmp_path / "ae")
    (path / "model.safetensors").write_bytes((2**63).to_bytes(8, "little") + b"{}")
    content = json.loads((path / "config.json").read_text())
    content["weights_sha256"] = sha256_of(path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=r"model\.safetensors is damaged"):
        load_artifact(path)


@pytest.mark.parametrize("pairs", [[1], ["ab"], [["a", "b", "c"]], [["a", None]], {"a": "b"}])
def test_malformed_fingerprints_are_refused_by_name(tmp_path, pairs):
    path = _save_autoencoder(tmp_path / "ae")
    content = json.loads((path / "config.json").read_text())
    content["training"] = {"fingerprints": {"training": pairs}}
    (path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=r"ae/config\.json is not a readable .*training\.fingerprints .*: make the"):
        read_config(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"format_version": 1}', b'{"format_version": 1, "parents": 3}'],
)
def test_description_that_is_none_is_refused_by_name(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"config\.json is not a readable artifact description"):
        read_config(tmp_path)


@pytest.mark.parametrize("field", ["architecture", "preprocessing", "settings", "training", "metrics", "real_tumors"])
def test_description_with_a_number_for_a_mapping_is_refused(tmp_path, field):
    file = _save_autoencoder(tmp_path / "ae") / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), field: 3}))
    with pytest.raises(ArtifactError, match=f"{field} is not a mapping"):
        read_config(tmp_path / "ae")


def test_replacing_leaves_nothing_else_behind_and_foreign_folders_alone(tmp_path):
    path = _save_autoencoder(tmp_path / "ae")
    before = read_config(path).weights_sha256
    _save_autoencoder(path)
    assert read_config(path).weights_sha256 != before
    assert [p.name for p in tmp_path.iterdir()] == ["ae"]

    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("precious")
    for name in ("notes.txt", "config.json"):
        (tmp_path / "thesis" / name).write_text('{"architectures": ["BertModel"], "model_type": "bert"}')
        with pytest.raises(ConfigError, match="is not an earlier artifact"):
            _save_autoencoder(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "precious"


def test_failure_while_saving_keeps_the_old_artifact(tmp_path):
    path = _save_autoencoder(tmp_path / "ae")
    before = read_config(path)
    with pytest.raises(TypeError):
        _save_autoencoder(path, metrics={"bad": object()})
    assert read_config(path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["ae"]


def test_devices():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cpu", "cuda")
    for name in ("banana", "meta", "cuda:99"):
        with pytest.raises(DeviceError, match=name):
            pick_device(name)


def test_a_device_is_picked_without_what_predicts():
    code = "import sys, difftumor.models.artifact; print(sorted({'monai', 'scipy', 'nibabel'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
