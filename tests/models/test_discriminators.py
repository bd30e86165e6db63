"""The discriminators against stored values and published names."""

import pytest
import torch

from difftumor.errors import ConfigError, ShapeError
from difftumor.models.discriminators import SliceDiscriminator, VolumeDiscriminator
from tests.reference import load_reference, published_keys, reference_state, relative_error

CASES = [
    pytest.param(SliceDiscriminator, "image_discriminator.", "slice", id="slice"),
    pytest.param(VolumeDiscriminator, "video_discriminator.", "volume", id="volume"),
]


@pytest.mark.parametrize(("kind", "prefix", "name"), CASES)
def test_state_names_and_shapes_are_the_published_ones(kind, prefix, name):
    with torch.device("meta"):
        state = kind().state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == published_keys("autoencoder", prefix)
    assert list(state) == list(published_keys("autoencoder", prefix))


@pytest.mark.parametrize(("kind", "prefix", "name"), CASES)
@torch.no_grad()
def test_reference_logits_and_features(kind, prefix, name):
    stored = load_reference("autoencoder")
    x = torch.from_numpy(stored["slice_input" if name == "slice" else "ct"])
    outputs = reference_state(kind(), prefix)(x)
    assert len(outputs) == 5
    assert relative_error(outputs[-1], stored[f"{name}_logits"]) < 1e-5
    assert relative_error(torch.stack([output.mean() for output in outputs]), stored[f"{name}_feature_means"]) < 1e-5


@pytest.mark.parametrize(("kind", "prefix", "name"), CASES)
def test_features_keep_their_values_and_gradients(kind, prefix, name):
    network = reference_state(kind(base_channels=4), prefix).train()
    x = torch.randn(2, 1, *[16] * (2 if name == "slice" else 3), generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
    outputs = network(x)
    # A later block that worked in place on an earlier block's output would leave something else than the activation.
    with torch.no_grad():
        assert torch.allclose(network.model0(x), outputs[0])
    assert [output.shape[1] for output in outputs] == [4, 8, 16, 32, 1]
    sum(output.mean() for output in outputs).backward()
    assert x.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in network.parameters())


@torch.no_grad()
def test_slices_of_a_batch_are_judged_alone_in_eval_mode():
    network = reference_state(SliceDiscriminator(base_channels=4), "image_discriminator.")
    x = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(network(x)[-1][1:2], network(x[1:2])[-1], atol=1e-6)


@pytest.mark.parametrize(("kind", "prefix", "name"), CASES)
def test_wrong_inputs_are_refused(kind, prefix, name):
    network = kind(base_channels=2)
    dimensions = 2 if name == "slice" else 3
    with pytest.raises(ShapeError, match=kind.__name__):
        network(torch.zeros(1, 2, *[8] * dimensions))
    with pytest.raises(ShapeError, match=kind.__name__):
        network(torch.zeros(1, 1, *[8] * (5 - dimensions)))
    with pytest.raises(ConfigError, match="positive"):
        kind(base_channels=0)
