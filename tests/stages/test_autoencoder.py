"""What one step of stage 1 does to its networks."""

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from difftumor.datasets.cases import Case, CaseList
from difftumor.errors import CaseListError, ConfigError
from difftumor.intensity import IntensityWindow
from difftumor.seeding import torch_generator
from stages.autoencoder import split
from stages.autoencoder_module import AutoencoderModule
from stages.autoencoder_options import StepOptions

WEIGHTS = {
    "l1": 4.0, "codebook": 1.0, "commitment": 0.25, "slice_adversarial": 1.0, "volume_adversarial": 1.0,
    "feature_matching": 4.0,
}  # fmt: skip
EMA = {"update": "ema", "decay": 0.99, "restart_below": 1.0}
NETWORK = {"base_channels": 2, "norm_groups": 2, "codes": 16}


def module(lr=1e-3, **options):
    steps = {name: options.pop(name) for name in StepOptions.__annotations__ if name in options}
    return AutoencoderModule(
        **{
            "seed": 0, "network": NETWORK, "codebook": EMA, "discriminator_channels": 2, "start_step": 0,
            "adversarial": "hinge", "weights": WEIGHTS, "perceptual": None, "perceptual_weight": 0.0,
            "options": StepOptions(lr=lr, betas=(0.9, 0.999), **steps),
            "window": IntensityWindow(), "spacing_mm": (1, 1, 1), "crop": (16, 16, 16), **options,
        }
    )  # fmt: skip


def train(ours, steps):
    """Train on the same batch a number of times; nothing is written."""
    batch = {"ct": 100 * torch.randn(2, 1, 16, 16, 16, generator=torch_generator(7))}
    loader = torch.utils.data.DataLoader([batch] * steps, batch_size=None)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(ours, loader)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def state(network):
    return {name: value.clone() for name, value in network.state_dict().items() if "num_batches" not in name}


def changed(network, before):
    return {name for name, value in state(network).items() if not torch.equal(value, before[name])}


def test_discriminators_wait_for_their_step():
    ours = module(start_step=2)
    before = state(ours.critics.slice), state(ours.critics.volume), state(ours.autoencoder)
    metrics = train(ours, 2)
    assert not changed(ours.critics.slice, before[0])
    assert not changed(ours.critics.volume, before[1])
    assert not {"training/discriminators", "training/feature_matching"} & set(metrics)
    assert changed(ours.autoencoder, before[2])


def test_every_network_learns_once_they_have_joined():
    # Under hinge the last bias sees -1/2 + 1/2 as long as no logit reaches its margin.
    ours = module(start_step=2, adversarial="vanilla")
    networks = (ours.critics.slice, ours.critics.volume, ours.autoencoder)
    before = [state(network) for network in networks]
    metrics = train(ours, 3)
    for network, old in zip(networks, before, strict=True):
        weights = {name for name, _ in network.named_parameters()}
        assert weights <= changed(network, old)
    losses = {*WEIGHTS, "loss", "slice_discriminator", "volume_discriminator", "discriminators"}
    watched = {"perplexity", "dead_codes", "psnr", "autoencoder_gradient_norm", "discriminators_gradient_norm"}
    assert {f"training/{name}" for name in losses | watched | {"skipped_steps"}} == set(metrics)
    assert ours.steps_done == 3
    assert metrics["training/skipped_steps"] == 0


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_the_total_is_the_weighted_sum(update):
    codebook = {**EMA, "update": update}
    metrics = train(module(codebook=codebook), 1)
    weights = {**WEIGHTS, "codebook": WEIGHTS["codebook"] if update == "gradient" else 0.0}
    total = sum(weight * metrics[f"training/{name}"] for name, weight in weights.items())
    assert metrics["training/loss"] == pytest.approx(total, rel=1e-5)
    critics = metrics["training/slice_discriminator"] + metrics["training/volume_discriminator"]
    assert metrics["training/discriminators"] == pytest.approx(critics, rel=1e-5)
    # The first step has the same networks: what is logged does not depend on the weights, the total does.
    halved = train(module(codebook=codebook, weights={name: weight / 2 for name, weight in WEIGHTS.items()}), 1)
    for name in weights:
        assert halved[f"training/{name}"] == pytest.approx(metrics[f"training/{name}"], rel=1e-5)
    assert halved["training/loss"] == pytest.approx(total / 2, rel=1e-5)


def test_reconstructions_get_better():
    # Lightning logs to an epoch's mean at most here; compare a first step with the last of many.
    assert train(module(start_step=1000, lr=5e-3), 60)["training/psnr"] > train(module(), 1)["training/psnr"] + 3


def test_weights_depend_on_the_seed_and_not_on_the_global_generator():
    first = state(module())
    torch.manual_seed(123)
    assert not changed(module(), first)
    assert changed(module(seed=1), first)


def test_noise_of_a_step_depends_on_seed_step_and_purpose():
    ours = module()

    def draw(*keys):
        return torch.rand(1, generator=ours.step_generator(*keys)).item()

    assert draw("a") == draw("a")
    assert draw("a") != draw("b")
    first = draw("a")
    ours.steps_done = 1
    assert draw("a") != first


def test_the_perceptual_loss_takes_part_and_stays_out_of_the_checkpoint():
    class Distance(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, fake, real, positions):
            return self.scale * (fake - real).square().mean()

    ours = module(perceptual=Distance(), perceptual_weight=4.0)
    assert not [name for name in ours.state_dict() if "scale" in name or "perceptual" in name]
    assert not [p for optimizer in ours.configure_optimizers() for g in optimizer.param_groups for p in g["params"]
                if p is ours._perceptual[0].scale]  # fmt: skip
    assert train(ours, 1)["training/perceptual"] > 0


def test_networks_see_depth_first():
    ct = torch.zeros(1, 1, 4, 6, 8)
    ct[0, 0, 1, 2, 3] = 250
    signed = module()._signed({"ct": ct})
    assert signed.shape == (1, 1, 8, 4, 6)
    assert signed.argmax() == torch.tensor([3 * 24 + 1 * 6 + 2])
    assert signed.max() == 1


def listed(count=20, validation=()):
    cases = tuple(Case(f"c{i}", Path("x"), None, f"p{i // 2}") for i in range(count))
    return CaseList(cases, {}, Path("list.json"), validation)


def test_patients_are_held_out_whole():
    cases = listed()
    train_cases, validation = split(cases, share=0.2, seed=0)
    assert len(validation) == 4
    assert not {c.patient for c in train_cases} & {c.patient for c in validation}
    assert split(cases, share=0.0, seed=0) == (cases.cases, ())
    with pytest.raises(ConfigError, match=r"data\.validation_share"):
        split(cases, share=0.9, seed=0)


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_stated_validation_cases_are_held_out_whatever_the_share(share, capsys):
    train_cases, validation = split(listed(8, validation=("c2", "c3")), share=share, seed=0)
    assert [case.id for case in validation] == ["c2", "c3"]
    assert [case.id for case in train_cases] == ["c0", "c1", "c4", "c5", "c6", "c7"]
    assert f"data.validation_share={share} is ignored" in capsys.readouterr().out
    with pytest.raises(CaseListError, match="Patient 'p1' is in training and validation"):
        split(listed(8, validation=("c2",)), share=share, seed=0)
