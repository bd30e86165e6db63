"""What discriminators and autoencoder want of each other, and where gradients go."""

import pytest
import torch

from difftumor.seeding import torch_generator
from stages.critics import AXIAL, Critics
from stages.losses import discriminator_loss, feature_matching, generator_loss, take_slices
from stages.module import initial_weights


@pytest.fixture
def critics():
    with initial_weights(0):
        return Critics(base_channels=2, kind="vanilla")


def volumes():
    real = torch.randn(2, 1, 16, 16, 16, generator=torch_generator(1))
    return real, (0.5 * real).requires_grad_(), torch.tensor([3, 11])


def test_demands_reach_the_reconstruction_alone(critics):
    real, fake, positions = volumes()
    sum(critics.demands(fake, positions, critics.see(real, positions)).values()).backward()
    assert fake.grad.abs().sum() > 0
    assert all(parameter.grad is None and parameter.requires_grad for parameter in critics.parameters())


def test_losses_reach_the_discriminators_alone(critics):
    real, fake, positions = volumes()
    sum(critics.losses(fake, positions, critics.see(real, positions)).values()).backward()
    assert fake.grad is None
    assert all(parameter.grad is not None for parameter in critics.parameters())


def test_losses_are_those_of_the_equations(critics):
    real, fake, positions = volumes()
    seen = critics.see(real, positions)
    found = {**critics.demands(fake, positions, seen), **critics.losses(fake, positions, seen)}
    matching = 0
    for name, pair in {
        "slice": [take_slices(x, positions, AXIAL) for x in (real, fake)],
        "volume": [real, fake],
    }.items():
        ours, theirs = (getattr(critics, name)(x) for x in pair)
        assert torch.equal(found[f"{name}_adversarial"], generator_loss(theirs[-1], "vanilla"))
        assert torch.equal(found[f"{name}_discriminator"], discriminator_loss(ours[-1], theirs[-1], "vanilla"))
        matching += feature_matching(theirs, ours)
    assert found["feature_matching"].item() == pytest.approx(matching.item(), rel=1e-6)
    assert len(found) == 5
