"""The autoencoder against stored values, published names, and its own invariants."""

import pytest
import torch

from difftumor.errors import ConfigError, ShapeError
from difftumor.models.autoencoder import Autoencoder
from tests.reference import load_reference, published_keys, reference_state, relative_error


@pytest.fixture(scope="module")
def published():
    return reference_state(Autoencoder())


@pytest.fixture(scope="module")
def stored():
    return {key: torch.from_numpy(value) for key, value in load_reference("autoencoder").items()}


@pytest.fixture
def small():
    """The demo's sizes."""
    return reference_state(Autoencoder(base_channels=8, norm_groups=4, codes=512))


def ct(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_state_names_and_shapes_are_the_published_ones():
    expected = {key: shape for key, shape in published_keys("autoencoder").items() if "discriminator" not in key}
    with torch.device("meta"):
        state = Autoencoder().state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == expected
    assert list(state) == list(expected)
    assert {value.dtype for value in state.values()} == {torch.float32}


@torch.no_grad()
def test_reference_encode(published, stored):
    assert relative_error(published.encode(stored["ct"]), stored["features"]) < 1e-5


@torch.no_grad()
def test_reference_decode(published, stored):
    embeddings = published.codebook.lookup(stored["indices"].long())
    assert relative_error(published.decode(embeddings), stored["reconstruction"]) < 1e-5


@torch.no_grad()
def test_reference_forward(published, stored):
    output = published(stored["ct"])
    assert relative_error(output.features, stored["features"]) < 1e-5
    assert torch.equal(output.quantized.indices, stored["indices"].long())
    assert relative_error(output.reconstruction, stored["reconstruction"]) < 1e-5
    assert relative_error(0.25 * output.quantized.commitment_loss, stored["commitment_loss"]) < 1e-5
    assert relative_error(output.quantized.perplexity, stored["perplexity"]) < 1e-5


@torch.no_grad()
def test_reference_holds_in_either_memory_format(stored):
    for memory_format in (torch.contiguous_format, torch.channels_last_3d):
        network = reference_state(Autoencoder()).to(memory_format=memory_format)
        output = network(stored["ct"].contiguous(memory_format=memory_format))
        assert torch.equal(output.quantized.indices, stored["indices"].long())
        assert relative_error(output.reconstruction, stored["reconstruction"]) < 1e-5


@pytest.mark.parametrize("size", [(8, 8, 8), (4, 12, 16)])
@torch.no_grad()
def test_shapes(small, size):
    output = small(ct(2, 1, *size))
    latent = tuple(n // small.downsampling for n in size)
    assert output.features.shape == output.quantized.embeddings.shape == (2, 8, *latent)
    assert output.quantized.indices.shape == (2, *latent)
    assert output.reconstruction.shape == (2, 1, *size)


@pytest.mark.parametrize(("levels", "downsampling"), [(1, 2), (3, 8)])
@torch.no_grad()
def test_levels_set_the_downsampling(levels, downsampling):
    network = reference_state(Autoencoder(base_channels=4, levels=levels, norm_groups=2, codes=16, latent_channels=3))
    output = network(ct(1, 1, 8, 8, 16))
    assert network.downsampling == downsampling
    assert output.features.shape == (1, 3, 8 // downsampling, 8 // downsampling, 16 // downsampling)
    assert output.reconstruction.shape == (1, 1, 8, 8, 16)


@torch.no_grad()
def test_a_batch_equals_its_elements(small):
    x = ct(3, 1, 8, 8, 8)
    whole = small(x)
    for i in range(3):
        one = small(x[i : i + 1])
        assert torch.equal(one.quantized.indices[0], whole.quantized.indices[i])
        assert torch.allclose(one.reconstruction[0], whole.reconstruction[i], atol=1e-5)


@torch.no_grad()
def test_constant_ct_has_constant_features(small):
    """Only edges that are replicated, not filled with zeros, keep a constant constant up to the border."""
    features = small.encode(torch.full((1, 1, 16, 16, 16), 0.3))
    assert torch.allclose(features, features[..., :1, :1, :1].expand_as(features), atol=1e-5)


def test_gradient_reaches_the_whole_network_through_the_codes(small):
    output = small(ct(1, 1, 8, 8, 8))
    (output.reconstruction.square().mean() + output.quantized.commitment_loss).backward()
    for name, parameter in small.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def gradients(network, x):
    """Gradients of all parameters, and how many numbers autograd kept for them."""
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        output = network(x)
    numbers = sum(t.numel() for t in kept.values())
    (output.reconstruction.square().mean() + output.quantized.commitment_loss).backward()
    return {name: parameter.grad for name, parameter in network.named_parameters()}, numbers


def test_checkpointing_gives_the_same_gradients_from_less_memory(small):
    x = ct(1, 1, 16, 16, 16)
    thrifty = reference_state(Autoencoder(base_channels=8, norm_groups=4, codes=512, gradient_checkpointing=True))
    (plain, most), (ours, least) = gradients(small, x), gradients(thrifty, x)
    for name, gradient in plain.items():
        assert torch.equal(ours[name], gradient), name
    assert least < most / 2


def test_weights_load_from_either_memory_format(small):
    """Checkpoints of other programs hold them channels-first."""
    state = {name: value.contiguous() for name, value in small.state_dict().items()}
    other = Autoencoder(base_channels=8, norm_groups=4, codes=512)
    other.load_state_dict(state)
    weight = other.decoder.conv_blocks[0].res1.conv1.conv.weight
    assert weight.is_contiguous(memory_format=torch.channels_last_3d)
    with torch.no_grad():
        assert torch.equal(other(ct(1, 1, 8, 8, 8)).reconstruction, small(ct(1, 1, 8, 8, 8)).reconstruction)


def test_forward_leaves_the_state_alone(small):
    before = {key: value.clone() for key, value in small.state_dict().items()}
    small.train()(ct(1, 1, 8, 8, 8))
    assert all(torch.equal(value, before[key]) for key, value in small.state_dict().items())


@pytest.mark.parametrize("size", [(8, 8, 6), (9, 8, 8), (0, 8, 8)])
def test_sizes_that_do_not_halve_are_refused(small, size):
    with pytest.raises(ShapeError, match="multiple of 4"):
        small.encode(torch.zeros(1, 1, *size))


def test_wrong_shapes_are_refused(small):
    with pytest.raises(ShapeError, match=r"\(B, 1, Z, X, Y\)"):
        small.encode(torch.zeros(1, 2, 8, 8, 8))
    with pytest.raises(ShapeError, match=r"\(B, 8, z, x, y\)"):
        small.decode(torch.zeros(1, 7, 2, 2, 2))


@pytest.mark.parametrize(
    "options",
    [
        {"base_channels": 0},
        {"levels": 0},
        {"latent_channels": 0},
        {"codes": 0},
        {"base_channels": 8, "norm_groups": 32},
    ],
)
def test_wrong_options_are_refused(options):
    with torch.device("meta"), pytest.raises(ConfigError):
        Autoencoder(**options)
