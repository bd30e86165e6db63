"""Losses against answers worked out by hand, and LPIPS against the library's own call."""

import math

import pytest
import torch
import torchvision

from difftumor.errors import ConfigError, TrainingError
from difftumor.seeding import torch_generator
from stages.autoencoder.losses import (
    PerceptualLoss,
    discriminator_loss,
    feature_matching,
    generator_loss,
    psnr,
    random_positions,
    take_slices,
)


def test_hinge_by_hand():
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 1.0])
    # real: relu(1-2), relu(1-0) -> mean 1/2; fake: relu(1-3), relu(1+1) -> mean 1
    assert discriminator_loss(real, fake, "hinge") == pytest.approx(0.75)
    assert generator_loss(fake, "hinge") == pytest.approx(1.0)


def test_vanilla_is_binary_cross_entropy():
    real, fake = torch.randn(50, generator=torch_generator(0)), torch.randn(50, generator=torch_generator(1))
    cross_entropy = torch.nn.BCEWithLogitsLoss()
    expected = (cross_entropy(real, torch.ones(50)) + cross_entropy(fake, torch.zeros(50))) / 2
    assert discriminator_loss(real, fake, "vanilla") == pytest.approx(float(expected), rel=1e-6)
    assert generator_loss(fake, "vanilla") == pytest.approx(float(cross_entropy(fake, torch.ones(50))), rel=1e-6)


@pytest.mark.parametrize("kind", ["hinge", "vanilla"])
def test_losses_pull_in_opposite_directions(kind):
    fake = torch.zeros(3, requires_grad=True)
    (ours,) = torch.autograd.grad(generator_loss(fake, kind), fake)
    (theirs,) = torch.autograd.grad(discriminator_loss(torch.zeros(3), fake, kind), fake)
    assert (ours < 0).all()
    assert (theirs > 0).all()


def test_feature_matching_leaves_out_the_logits_and_the_real_side():
    fake = [torch.ones(2, requires_grad=True), torch.full((3,), 2.0), torch.full((1,), 1e6)]
    real = [torch.zeros(2, requires_grad=True), torch.zeros(3), torch.zeros(1)]
    loss = feature_matching(fake, real)
    assert loss.item() == pytest.approx(3.0)
    loss.backward()
    assert real[0].grad is None
    assert fake[0].grad is not None


@pytest.mark.parametrize("axis", [2, 3, 4])
def test_slices_are_those_asked_for(axis):
    volume = torch.arange(2 * 3 * 4 * 5).reshape(2, 1, 3, 4, 5)
    positions = torch.tensor([0, 2])
    found = take_slices(volume, positions, axis)
    for element, position in enumerate(positions):
        assert torch.equal(found[element], volume[element].select(axis - 1, int(position)))


def test_positions_cover_the_axis_and_repeat_with_the_seed():
    drawn = random_positions(4, 200, torch_generator(3))
    assert set(drawn.tolist()) == {0, 1, 2, 3}
    assert torch.equal(drawn, random_positions(4, 200, torch_generator(3)))


def test_psnr_by_hand():
    assert psnr(torch.full((4,), 0.2), torch.zeros(4)) == pytest.approx(10 * math.log10(4 / 0.04), rel=1e-5)


@pytest.fixture(scope="module")
def squeezenet(tmp_path_factory):
    """A file such as a user may have, with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = torchvision.models.squeezenet1_1(weights=None)
    file = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.save(network.state_dict(), file)
    return file, network


def test_perceptual_loads_a_local_file_and_leaves_the_global_generator_alone(squeezenet):
    file, network = squeezenet
    before = torch.random.get_rng_state()
    loss = PerceptualLoss(backbone="squeeze", weights=file)
    assert torch.equal(before, torch.random.get_rng_state())
    inner = dict(loss.lpips.net.named_parameters())
    assert torch.equal(inner["slice2.3.squeeze.weight"], network.features[3].squeeze.weight)
    assert not any(parameter.requires_grad for parameter in loss.parameters())


@pytest.mark.parametrize(("reduction", "planes"), [("sum", 1), ("mean", 3)])
def test_perceptual_is_lpips_over_three_planes(squeezenet, reduction, planes):
    loss = PerceptualLoss(backbone="squeeze", weights=squeezenet[0], reduction=reduction).train()
    real = torch.rand(1, 1, 24, 24, 24, generator=torch_generator(1)) * 2 - 1
    fake = (0.8 * real).requires_grad_()
    positions = torch.tensor([[3], [20], [11]])
    found, expected = loss(fake, real, positions), []
    for axis, position in ((2, 3), (3, 20), (4, 11)):
        pair = [x.select(axis, position).expand(1, 3, 24, 24) for x in (fake, real)]
        expected.append(loss.lpips(*pair).mean())
    assert found.item() == pytest.approx(sum(x.item() for x in expected) / planes, rel=1e-5)
    assert float(loss(real, real, positions)) == 0
    found.backward()
    assert fake.grad.abs().sum() > 0


def test_missing_weights_name_the_two_settings(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(TrainingError, match=r"perceptual\.weights=PATH .* perceptual\.weight=0"):
        PerceptualLoss(backbone="squeeze")


def test_wrong_files_are_named(squeezenet, tmp_path):
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(TrainingError, match=r"text\.pth cannot be read"):
        PerceptualLoss(backbone="squeeze", weights=tmp_path / "text.pth")
    with pytest.raises(TrainingError, match=r"lacks 'features\.0\.weight' of torchvision's alex"):
        PerceptualLoss(backbone="alex", weights=squeezenet[0])
    with pytest.raises(ConfigError, match="choose vgg, alex, squeeze"):
        PerceptualLoss(backbone="resnet")  # type: ignore[arg-type]
