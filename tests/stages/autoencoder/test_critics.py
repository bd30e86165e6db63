"""What discriminators and autoencoder want of each other, and where gradients go."""

import pytest
import torch

from difftumor.seeding import torch_generator
from stages.autoencoder.critics import AXIAL, Critics
from stages.autoencoder.losses import discriminator_loss, feature_matching, generator_loss, take_slices
from stages.run.module import initial_weights


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


@pytest.mark.parametrize("thickness", [8, 12, 16, 17, 18])
def test_gradients_in_bfloat16_are_those_in_float32_however_thin_the_crop(critics, thickness):
    real, fake = (torch.randn(2, 1, thickness, 16, 16, generator=torch_generator(seed)) for seed in (1, 2))
    positions = torch.tensor([0, 3])

    def gradients(*, bfloat16):
        critics.zero_grad()
        # Memory that was used before, which a kernel that forgets to fill its result would hand out.
        used = [torch.full((4**size,), 1e30) for size in range(2, 9) for _ in range(3)]
        del used
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            losses = critics.losses(fake, positions, critics.see(real, positions))
            sum(losses.values()).backward()
        return {name: parameter.grad.clone() for name, parameter in critics.named_parameters()}

    exact, rounded = gradients(bfloat16=False), gradients(bfloat16=True)
    for name in (f"volume.model{block}.0.weight" for block in range(5)):
        assert (rounded[name] - exact[name]).norm() < 0.3 * exact[name].norm(), name
