"""Feature networks: their weights come from files, whole and checked; what they see is what they say."""

import pickle

import pytest
import torch
from monai.networks.nets import resnet10
from torch import nn
from torchvision.models import inception_v3, resnet50

from difftumor.errors import ArtifactError, ConfigError, PublishedFileError
from difftumor.evaluation.realism.features import load_features
from difftumor.evaluation.realism.weights import load_weights, read_weights
from difftumor.files.checksums import sha256_of
from difftumor.models.artifact import save_artifact
from difftumor.models.autoencoder import Autoencoder
from difftumor.scans.intensity import IntensityWindow

WINDOW = IntensityWindow(-100.0, 100.0)
WHERE = {"window": WINDOW, "spacing_mm": (1.0, 1.0, 1.0), "crop": 16}


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return resnet50(weights=None).eval()


@pytest.fixture(scope="module")
def weights(tmp_path_factory, resnet):
    path = tmp_path_factory.mktemp("weights") / "resnet.pth"
    torch.save(resnet.state_dict(), path)
    return path


def test_reads_a_training_file_of_several_gpus_in_the_old_format(tmp_path):
    path = tmp_path / "old.pth"
    table = {"state_dict": {"module.weight": torch.ones(2, 2), "module.bias": torch.zeros(2)}}
    torch.save(table, path, _use_new_zipfile_serialization=False)
    read = read_weights(path)
    assert set(read.tensors) == {"weight", "bias"}
    assert read.sha256 == sha256_of(path)
    layer = nn.Linear(2, 2)
    load_weights(layer, read)
    assert torch.equal(layer(torch.ones(1, 2)), torch.full((1, 2), 2.0))


def test_runs_nothing_of_a_file(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))

    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps({"weight": Evil()}))
    with pytest.raises(PublishedFileError, match=r"evil\.pth holds no weights"):
        read_weights(path)
    torch.save({"weight": Evil()}, path)
    with pytest.raises(PublishedFileError, match="safely"):
        read_weights(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [b"", b"no file of weights", b"PK\x03\x04broken"])
def test_damaged_files_are_refused_in_one_sentence(tmp_path, content):
    for name in ("broken.pth", "broken.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PublishedFileError, match=rf"{name} holds no weights"):
            read_weights(tmp_path / name)


def test_flipped_bits_and_endless_tensors_are_refused(tmp_path):
    path = tmp_path / "layer.pth"
    torch.save({"weight": torch.ones(64, 64), "bias": torch.zeros(64)}, path)
    content = bytearray(path.read_bytes())
    at = content.index(torch.ones(4).numpy().tobytes())
    content[at + 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(PublishedFileError, match=r"the checksum of '.*/data/\d' differs"):
        read_weights(path)
    torch.save({"weight": torch.ones(1).expand(10**6, 10**6), "bias": torch.zeros(64)}, path)
    with pytest.raises(PublishedFileError, match=r"another shape weight \(1000000, 1000000\)"):
        load_weights(nn.Linear(64, 64), read_weights(path))
    torch.save({"weight": torch.full((2, 2), float("nan")), "bias": torch.zeros(2)}, path)
    with pytest.raises(PublishedFileError, match=r"not finite \(weight\)"):
        load_weights(nn.Linear(2, 2), read_weights(path))
    (tmp_path / "long.safetensors").write_bytes((2**63).to_bytes(8, "little") + b"{}")
    with pytest.raises(PublishedFileError, match="holds no weights"):
        read_weights(tmp_path / "long.safetensors")


def test_a_missing_file_and_one_without_weights(tmp_path):
    with pytest.raises(PublishedFileError, match="There is no file"):
        read_weights(tmp_path / "none.pth")
    torch.save({"epoch": 3}, tmp_path / "numbers.pth")
    with pytest.raises(PublishedFileError, match="no state dict"):
        read_weights(tmp_path / "numbers.pth")


def test_wrong_keys_are_named(tmp_path):
    path = tmp_path / "layer.pth"
    torch.save({"weight": torch.ones(2, 3), "wait": torch.ones(1)}, path)
    with pytest.raises(PublishedFileError, match=r"lacks bias and has, unexpected, wait and has in .* weight \(2, 3\)"):
        load_weights(nn.Linear(2, 2), read_weights(path))


def test_weights_of_another_network_are_refused(weights):
    with pytest.raises(PublishedFileError, match=r"Inception3.*lacks Conv2d_1a_3x3\.conv\.weight.* more"):
        load_features("inception_v3", weights, **WHERE)


@pytest.mark.parametrize("sequence", [False, True], ids=["torchvision's names", "RadImageNet's names"])
def test_radimagenet(tmp_path, resnet, weights, sequence):
    path = weights
    if sequence:
        path = tmp_path / "backbone.pth"
        backbone = nn.ModuleDict({"backbone": nn.Sequential(*list(resnet.children())[:-1])})
        torch.save(backbone.state_dict(), path)
    network = load_features("radimagenet_resnet50", path, **WHERE)
    assert (network.kind, network.dimensions) == ("slices", 2048)
    assert network.origin["sha256"] == sha256_of(path)
    slices_hu = torch.rand(2, 1, 224, 224) * 400 - 200
    features = network.extract(slices_hu)
    unit = (slices_hu.clip(-100, 100) + 100) / 200
    seen = torch.cat([unit - 0.406, unit - 0.456, unit - 0.485], dim=1)
    trunk = nn.Sequential(*list(resnet.children())[:-2])
    with torch.no_grad():
        assert torch.allclose(features, trunk(seen).mean(dim=(2, 3)), rtol=1e-4, atol=1e-5)


def test_inception(tmp_path):
    published = inception_v3(weights=None, init_weights=False).eval()
    path = tmp_path / "inception.pth"
    torch.save(published.state_dict(), path)  # with both heads, which the features do not pass
    network = load_features("inception_v3", path, **WHERE)
    assert (network.kind, network.dimensions) == ("slices", 2048)
    slices_hu = torch.rand(2, 1, 299, 299) * 200 - 100
    features = network.extract(slices_hu)
    published.fc = nn.Identity()
    unit = (slices_hu + 100) / 200
    seen = torch.cat([(unit - m) / s for m, s in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))], dim=1)
    with torch.no_grad():
        assert torch.allclose(features, published(seen), rtol=1e-4, atol=1e-5)
    # One slice alone gives what it gives in a batch; any size is taken.
    assert torch.allclose(network.extract(slices_hu[:1]), features[:1], rtol=1e-4, atol=1e-5)
    assert network.extract(torch.zeros(1, 1, 16, 16)).shape == (1, 2048)


def test_the_inception_of_tensorflow_is_refused(tmp_path):
    path = tmp_path / "tensorflow.pth"
    torch.save({"fc.weight": torch.zeros(1008, 2048)}, path)
    with pytest.raises(PublishedFileError, match="TensorFlow"):
        load_features("inception_v3", path, **WHERE)


def test_medicalnet_keeps_the_level_of_a_crop(tmp_path):
    published = resnet10(
        spatial_dims=3, n_input_channels=1, feed_forward=False, shortcut_type="B", bias_downsample=False
    ).eval()
    table = {f"module.{name}": value for name, value in published.state_dict().items()}
    # As files from before PyTorch 0.4.1 have them.
    table = {name: value for name, value in table.items() if not name.endswith("num_batches_tracked")}
    path = tmp_path / "medicalnet.pth"
    torch.save({"state_dict": table}, path)
    network = load_features("medicalnet_resnet10", path, **WHERE)
    assert (network.kind, network.dimensions) == ("crops", 512)
    crops_hu = torch.rand(2, 1, 16, 16, 16) * 60 - 30
    features = network.extract(crops_hu)
    with torch.no_grad():
        seen = (crops_hu / 50).permute(0, 1, 4, 2, 3)
        assert torch.allclose(features, published(seen), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(features, network.extract(crops_hu + 40), rtol=1e-2)


@pytest.fixture
def artifact(tmp_path):
    sizes = {"base_channels": 4, "norm_groups": 4, "codes": 16}
    return save_artifact(
        tmp_path / "autoencoder",
        kind="autoencoder",
        architecture={"name": "vqgan3d", **sizes},
        network=Autoencoder(**sizes),
        preprocessing={"spacing_mm": [2.0, 2.0, 2.0], "window_hu": [-175.0, 250.0], "crop": [16, 16, 16]},
    )


def test_autoencoder_features_are_the_means_of_its_latent(artifact):
    path = artifact if not hasattr(artifact, "path") else artifact.path
    network = load_features("autoencoder", path, **{**WHERE, "spacing_mm": (2, 2, 2)})
    assert (network.kind, network.dimensions) == ("crops", 8)
    crops_hu = torch.rand(2, 1, 16, 16, 16) * 200
    features = network.extract(crops_hu)
    assert features.shape == (2, 8)
    # The artifact's window counts, not that of the other networks: 150 HU lie inside of it.
    bright = torch.full((1, 1, 16, 16, 16), 150.0)
    assert not torch.allclose(network.extract(bright), network.extract(bright + 50), atol=1e-4)
    assert torch.equal(network.extract(bright + 100), network.extract(bright + 500))


def test_autoencoder_wants_its_own_voxels_and_sizes(artifact, tmp_path):
    with pytest.raises(ConfigError, match="--spacing-mm 2,2,2"):
        load_features("autoencoder", tmp_path / "autoencoder", **WHERE)
    with pytest.raises(ConfigError, match="--crop 18 is not a multiple of 4"):
        load_features("autoencoder", tmp_path / "autoencoder", window=WINDOW, spacing_mm=(2, 2, 2), crop=18)
    with pytest.raises(ArtifactError):
        load_features("autoencoder", tmp_path / "nowhere", **WHERE)


def test_unknown_networks_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"vgg=.* inception_v3, radimagenet_resnet50"):
        load_features("vgg", tmp_path, **WHERE)
