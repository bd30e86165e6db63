"""What one step of stage 1 does to its networks."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins.precision import MixedPrecision

from difftumor.datasets.cases import Case, CaseList
from difftumor.errors import CaseListError
from difftumor.seeding import torch_generator
from stages.autoencoder.options import ClippedAdamOptions
from stages.autoencoder.train import build, split
from stages.config.comparing import flatten
from stages.config.compose import compose_config
from tests.stages.autoencoder_training import (
    TRAINER,
    WEIGHTS,
    Batches,
    SliceDistance,
    changed,
    crops,
    fit,
    module,
    state,
)
from tests.stages.builds import built_from


def train(ours, steps):
    """Train on the same batch a number of times; nothing is written."""
    batch = {"ct": 100 * torch.randn(2, 1, 16, 16, 16, generator=torch_generator(7))}
    return fit(ours, torch.utils.data.DataLoader([batch] * steps, batch_size=None))[-1]


def test_discriminators_wait_for_their_step():
    ours = module(start_step=2)
    before = state(ours.critics.slice), state(ours.critics.volume), state(ours.autoencoder)
    metrics = train(ours, 2)
    assert not changed(ours.critics.slice, before[0])
    assert not changed(ours.critics.volume, before[1])
    assert not {"discriminators", "feature_matching"} & set(metrics)
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
    assert losses | watched | {"skipped_steps", "lr"} == set(metrics)
    assert ours.steps_done == 3
    assert metrics["skipped_steps"] == 0
    assert 1 <= metrics["perplexity"] <= 16


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_the_total_is_the_weighted_sum(update):
    codebook, given = {"update": update}, {**WEIGHTS, "volume_adversarial": 0.5}
    metrics = train(module(codebook=codebook, weights=given), 1)
    weights = {**given, "codebook": given["codebook"] if update == "gradient" else 0.0}
    total = sum(weight * metrics[name] for name, weight in weights.items())
    assert metrics["loss"] == pytest.approx(total, rel=1e-5)
    critics = metrics["slice_discriminator"] + 0.5 * metrics["volume_discriminator"]
    assert metrics["discriminators"] == pytest.approx(critics, rel=1e-5)
    # The first step has the same networks: what is logged does not depend on the weights, the total does.
    halved = train(module(codebook=codebook, weights={name: weight / 2 for name, weight in given.items()}), 1)
    for name in weights:
        assert halved[name] == pytest.approx(metrics[name], rel=1e-5)
    assert halved["loss"] == pytest.approx(total / 2, rel=1e-5)


def test_slices_lie_inside_crops_that_are_no_cubes():
    ct = 100 * torch.randn(8, 1, 8, 12, 48, generator=torch_generator(7))
    (metrics,) = fit(
        module(perceptual=SliceDistance(), perceptual_weight=4.0),
        torch.utils.data.DataLoader([{"ct": ct}], batch_size=None),
    )
    assert metrics["perceptual"] > 0


@pytest.mark.slow
def test_reconstructions_get_better():
    # Lightning logs to an epoch's mean at most here; compare a first step with the last of many.
    assert train(module(start_step=1000, lr=5e-3), 60)["psnr"] > train(module(), 1)["psnr"] + 3


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
    assert train(ours, 1)["perceptual"] > 0


class Watch(Callback):
    """Notes everything that a step may change, before and after every step."""

    def __init__(self):
        self.before, self.after = [], []

    @staticmethod
    def _all(module):
        # BatchNorm counts its batches too.
        return copy.deepcopy([module.state_dict(), [o.state_dict() for o in module.trainer.optimizers]])

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.before.append(self._all(pl_module))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.after.append(self._all(pl_module))


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_a_batch_that_is_not_finite_leaves_no_trace_and_is_counted(update):
    watch, ours = Watch(), module(start_step=2, codebook={"update": update})
    # One of two elements at the first step, before there are codes, and then with the discriminators.
    history = fit(ours, Batches(5, 2, poisoned=(0, 3)), watch)
    for step in (0, 3):
        torch.testing.assert_close(watch.after[step], watch.before[step], rtol=0, atol=0)
    for step in (1, 2, 4):
        assert changed(ours, {n: v for n, v in watch.before[step][0].items() if "num_batches" not in n})
    assert watch.before[1][0]["autoencoder.codebook.N"].sum() == 0
    assert [step["skipped_steps"] for step in history] == [1, 1, 1, 2, 2]
    assert all(value.isfinite().all() for value in ours.state_dict().values())


def test_infinite_gradients_of_finite_losses_are_skipped_too():
    ours = module(start_step=10)
    first = ours.autoencoder.encoder.conv_first.conv.weight
    first.register_hook(lambda gradient: gradient * (torch.inf if ours.steps_done == 1 else 1))
    watch = Watch()
    history = fit(ours, Batches(3, 2), watch)
    torch.testing.assert_close(watch.after[1], watch.before[1], rtol=0, atol=0)
    assert [step["skipped_steps"] for step in history] == [0, 1, 1]


def test_the_learning_rate_falls_at_milestones():
    options = ClippedAdamOptions(
        lr=3e-4 / 16, betas=(0.5, 0.9), clip_norm=1.0, milestones=(20_000, 25_000, 30_000), gamma=0.1
    )
    expected = {
        0: 1.875e-5, 19_999: 1.875e-5, 20_000: 1.875e-6, 24_999: 1.875e-6, 25_000: 1.875e-7, 29_999: 1.875e-7,
        30_000: 1.875e-8, 39_999: 1.875e-8,
    }  # fmt: skip
    assert {step: options.lr_at(step) for step in expected} == pytest.approx(expected)
    # torch's own schedule, asked before each step.
    weight = torch.nn.Parameter(torch.zeros(()))
    adam = torch.optim.Adam([weight], lr=1e-3)
    schedule = torch.optim.lr_scheduler.MultiStepLR(adam, [2, 5], gamma=0.1)
    ours = replace(options, lr=1e-3, milestones=(2, 5))
    for step in range(8):
        assert ours.lr_at(step) == pytest.approx(schedule.get_last_lr()[0])
        adam.step()
        schedule.step()


def test_both_optimizers_follow_the_schedule():
    ours = module(lr=1e-3, milestones=(1, 3), adversarial="vanilla")
    rates, moves = [], []

    class Rates(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            rates.append([group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups])
            moves.append(state(ours.critics)["slice.model0.0.weight"])

    history = fit(ours, Batches(4, 2), Rates())
    expected = [1e-3, 1e-4, 1e-4, 1e-5]
    assert rates == [pytest.approx([rate, rate]) for rate in expected]
    assert [step["lr"] for step in history] == pytest.approx(expected)
    # Adam moves by its rate × (1 - β₁) / √(1 - β₂) at most.
    assert 0 < (moves[3] - moves[2]).abs().max() < 1e-5 * 3.17 < (moves[2] - moves[1]).abs().max()


@pytest.mark.parametrize("updates", [1, 2, 3])
def test_codes_follow_the_features_of_a_step_as_often_as_asked(updates):
    def moved(codes):
        ours = module(start_step=10, lr=1e-12, codebook={"decay": 0.5, "restart_below": 0.0, **codes})
        fit(ours, Batches(1, 2))
        return ours

    ours, once = moved({"updates_per_step": updates}), moved({"updates_per_step": 1})
    # By hand, from the codebook after one update: the features have not moved, and are assigned again each time.
    book = once.autoencoder.codebook
    with torch.no_grad():
        features = once.autoencoder.encode(once._signed({"ct": crops(2)}))
    for _ in range(updates - 1):
        vectors = features.movedim(1, -1).reshape(-1, 8)
        nearest = torch.cdist(vectors, book.embeddings).argmin(1)
        for code in range(16):
            mine = vectors[nearest == code]
            book.N[code] = 0.5 * book.N[code] + 0.5 * len(mine)
            book.z_avg[code] = 0.5 * book.z_avg[code] + 0.5 * mine.sum(0)
        book.embeddings.copy_(book.z_avg / book.N[:, None])
    torch.testing.assert_close(ours.autoencoder.codebook.N, book.N)
    torch.testing.assert_close(ours.autoencoder.codebook.embeddings, book.embeddings, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_micro_batches_give_the_step_of_their_batch(update):
    def trained(accumulate):
        options = {"start_step": 10, "clip_norm": 0.5, "accumulate": accumulate, "codebook": {"update": update}}
        ours = module(perceptual=SliceDistance(), perceptual_weight=4.0, **options)
        start = state(ours)
        return fit(ours, Batches(4, 4)), {name: value - start[name] for name, value in state(ours).items()}

    (history, moves), (parted_history, parted_moves) = trained(1), trained(4)
    for whole, parted in zip(history, parted_history, strict=True):
        for name in ("loss", "l1", "codebook", "commitment", "perceptual", "dead_codes", "autoencoder_gradient_norm"):
            assert parted[name] == pytest.approx(whole[name], rel=1e-4), name
    for name, move in moves.items():
        assert (parted_moves[name] - move).norm() <= 0.01 * move.norm(), name


def test_discriminators_learn_from_all_micro_batches():
    def first_step(ct, accumulate):
        ours = module(accumulate=accumulate)
        book = ours.autoencoder.codebook
        book.embeddings.normal_(generator=torch_generator(0))
        book.N.fill_(1)
        return fit(ours, torch.utils.data.DataLoader([{"ct": ct}], batch_size=None))[0]

    # Two micro-batches of the same elements: batch norm sees in both what it sees in one.
    ct = crops(2)
    one, both = first_step(ct, 1), first_step(torch.cat([ct, ct]), 2)
    for name in ("volume_discriminator", "volume_adversarial", "l1"):
        assert both[name] == pytest.approx(one[name], rel=1e-4)
    # Two other elements change what is learned.
    other = first_step(torch.cat([ct, crops(2, seed=8)]), 2)
    assert other["volume_discriminator"] != pytest.approx(one["volume_discriminator"], rel=1e-4)


def test_codes_learn_by_gradient_at_the_pace_of_the_optimizer():
    def codes(lr):
        ours = module(start_step=10, lr=lr, codebook={"update": "gradient", "restart_below": 0.0})
        fit(ours, Batches(1, 2))
        return ours.autoencoder.codebook.embeddings.detach()

    # Adam's first step moves every number that has a gradient by lr, whatever the gradient's size.
    moves = (codes(1e-3) - codes(1e-12)).abs()
    assert moves.max() == pytest.approx(1e-3, rel=1e-3)
    assert moves[moves > 0].median() == pytest.approx(1e-3, rel=1e-2)


def test_checkpointed_gradients_are_the_same():
    trained = [module(gradient_checkpointing=flag) for flag in (False, True)]
    assert [sum(getattr(part, "checkpointed", False) for part in ours.modules()) for ours in trained] == [0, 6]
    losses = [fit(ours, Batches(3, 2)) for ours in trained]
    assert losses[0] == losses[1]
    assert not changed(trained[0], state(trained[1]))


def test_bfloat16_trains_and_keeps_weights_in_float32():
    ours, exact = module(), module()
    history, expected = fit(ours, Batches(3, 2), precision="bf16-mixed"), fit(exact, Batches(3, 2))
    assert history[0]["l1"] == pytest.approx(expected[0]["l1"], rel=0.05)
    assert history[0]["l1"] != expected[0]["l1"]
    assert history[-1]["skipped_steps"] == 0
    assert {value.dtype for value in ours.state_dict().values() if value.is_floating_point()} == {torch.float32}


@pytest.mark.slow
def test_compiled_networks_agree_with_plain_ones():
    plain, compiled = module(), module(compile=True)
    names = list(compiled.state_dict())
    expected, found = (fit(ours, Batches(2, 2)) for ours in (plain, compiled))
    assert list(compiled.state_dict()) == names
    assert compiled.autoencoder.encoder._compiled_call_impl is not None
    for name in ("l1", "loss", "autoencoder_gradient_norm", "volume_discriminator", "feature_matching"):
        assert found[-1][name] == pytest.approx(expected[-1][name], rel=1e-3), name


def trained_in_float16(scale, **options):
    """Train forty steps, beginning with a scale; returns module, scaler and history."""
    ours = module(start_step=30, lr=5e-3, nonfinite_limit=1)

    class Begin(Callback):
        def on_train_start(self, trainer, pl_module):
            scaler = trainer.precision_plugin.scaler
            scaler.load_state_dict({**scaler.state_dict(), "scale": scale})

    history = fit(ours, Batches(40, 2), Begin(), **options)
    return ours, ours.trainer.precision_plugin.scaler, history


def check_settled(ours, scaler, history):
    skipped = history[-1]["skipped_steps"]
    assert 0 < skipped < 30
    # Each overflow halves the one scale of both optimizers.
    assert scaler.get_scale() == 2.0 ** (40 - skipped)
    losses = [step["l1"] for step in history if "l1" in step]
    assert sum(losses[-5:]) / 5 < 0.8 * losses[0]
    assert "discriminators_gradient_norm" in history[-1]
    assert all(value.isfinite().all() for value in ours.state_dict().values())
    assert {value.dtype for value in ours.state_dict().values() if value.is_floating_point()} == {torch.float32}


@pytest.mark.slow
def test_float16_settles_its_scale_and_trains():
    # Lightning refuses this on a CPU by name, torch does not.
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    check_settled(*trained_in_float16(2.0**40, plugins=[plugin]))


@pytest.mark.slow
def test_float16_goes_on_with_the_scale_of_its_checkpoint(tmp_path):
    def trained(epochs, checkpoint=None):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=4)
        options = {"max_epochs": epochs, "plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}
        ours, trainer = module(start_step=2), pl.Trainer(**{**TRAINER, **options})
        trainer.fit(ours, Batches(5, 2), ckpt_path=checkpoint, weights_only=True)
        return trainer, ours, scaler.state_dict()

    trained(1)[0].save_checkpoint(tmp_path / "half.ckpt")
    (_, whole, expected), (_, parted, found) = trained(2), trained(2, tmp_path / "half.ckpt")
    assert found == expected
    assert found["scale"] != 2.0**12
    assert found["_growth_tracker"] != 0
    assert parted.steps_done == 10
    assert parted.steps.state_dict() == whole.steps.state_dict()
    assert not changed(parted, state(whole))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_float16_settles_its_scale_and_trains_on_a_gpu():
    check_settled(*trained_in_float16(2.0**40, accelerator="gpu", devices=1, precision="16-mixed"))


def test_networks_see_depth_first():
    ct = torch.zeros(1, 1, 4, 6, 8)
    ct[0, 0, 1, 2, 3] = 250
    signed = module()._signed({"ct": ct})
    assert signed.shape == (1, 1, 8, 4, 6)
    assert signed.argmax() == torch.tensor([3 * 24 + 1 * 6 + 2])
    assert signed.max() == 1


def test_the_presets_are_what_the_documentation_says():
    def settings(*overrides):
        return flatten(OmegaConf.to_container(compose_config("autoencoder", overrides), resolve=True))

    default = settings()

    def differing(name):
        preset = settings(f"experiment={name}")
        assert preset["name"] == name
        return {key: value for key, value in preset.items() if value != default[key]} | {"name": "default"}

    assert differing("published") == {"name": "default"}
    assert differing("paper") == {
        "name": "default", "codebook.update": "gradient", "codebook.updates_per_step": 1, "data.batch_size": 4,
        "discriminators.loss": "vanilla", "loss_weights.l1": 1.0, "loss_weights.feature_matching": 1.0,
        "perceptual.weight": 1.0, "optimizer.lr": 3e-4, "optimizer.betas": [0.9, 0.999], "optimizer.milestones": [],
        "training.steps": 200000,
    }  # fmt: skip
    # 3e-4 × 1/8 × 2/4, in steps of both optimizers: × 0.1 at 40, 50 and 60 thousand of 80 thousand.
    assert default["optimizer.lr"] == pytest.approx(3e-4 / 16)
    assert [2 * step for step in default["optimizer.milestones"]] == [40_000, 50_000, 60_000]
    assert (2 * default["training.steps"], 2 * default["discriminators.start_step"]) == (80_000, 10_000)
    weights = {key.removeprefix("loss_weights."): v for key, v in default.items() if key.startswith("loss_weights.")}
    assert weights == WEIGHTS


def test_every_option_reaches_what_it_is_for(tiny_config, monkeypatch):
    given = {}
    monkeypatch.setattr("stages.autoencoder.train.PerceptualLoss", lambda **options: given.update(options))
    options = (
        "codebook.update=gradient", "codebook.decay=0.5", "codebook.restart_below=2.5", "discriminators.loss=vanilla",
        "discriminators.start_step=9", "perceptual.weight=0.7", "perceptual.backbone=alex", "perceptual.weights=file",
        "optimizer.lr=0.01", "optimizer.betas=[0.5,0.6]", "optimizer.clip_norm=0.3", "training.accumulate=3",
        "optimizer.milestones=[4,6]", "optimizer.gamma=0.5", "codebook.updates_per_step=3", "perceptual.reduction=mean",
        "augmentation.rotation_probability=0.7",
        "training.nonfinite_limit=7", "training.compile=true", "training.gradient_checkpointing=true",
    )  # fmt: skip
    weights = {name: 0.1 * place for place, name in enumerate(WEIGHTS)}
    stage = built_from(tiny_config(*options, *(f"loss_weights.{n}={w}" for n, w in weights.items())), build)
    ours, book = stage.module, stage.module.autoencoder.codebook
    assert (book.learning, book.decay, book.restart_below) == ("gradient", 0.5, 2.5)
    assert (ours.critics.kind, ours.start_step) == ("vanilla", 9)
    assert given == {"backbone": "alex", "weights": Path("file"), "reduction": "mean"}
    assert ours.weights == {**weights, "perceptual": 0.7}
    assert ours.optimizer == ClippedAdamOptions(lr=0.01, betas=(0.5, 0.6), clip_norm=0.3, milestones=(4, 6), gamma=0.5)
    assert (ours.codebook_updates, stage.data.transform.rotate.prob) == (3, 0.7)
    steps = ours.training_options
    assert (steps.accumulate, steps.nonfinite_limit, steps.compile, steps.gradient_checkpointing) == (3, 7, True, True)
    assert (ours.steps.limit, ours.steps.clip_norm) == (7, 0.3)
    assert [adam.defaults["betas"] for adam in ours.configure_optimizers()] == 2 * [(0.5, 0.6)]
    assert (stage.data.batch_size, stage.epochs, stage.mode) == (6, 4, "max")


def listed(count=20, validation=()):
    cases = tuple(Case(f"c{i}", Path("x"), None, f"p{i // 2}") for i in range(count))
    return CaseList(cases, {}, Path("list.json"), validation)


def test_patients_are_held_out_whole():
    cases = listed()
    train_cases, validation = split(cases, share=0.2, seed=0)
    assert len(validation) == 4
    assert not {c.patient for c in train_cases} & {c.patient for c in validation}
    assert split(cases, share=0.0, seed=0) == (cases.cases, ())


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_stated_validation_cases_are_held_out_whatever_the_share(share, capsys):
    train_cases, validation = split(listed(8, validation=("c2", "c3")), share=share, seed=0)
    assert [case.id for case in validation] == ["c2", "c3"]
    assert [case.id for case in train_cases] == ["c0", "c1", "c4", "c5", "c6", "c7"]
    assert f"data.validation_share={share} is ignored" in capsys.readouterr().out
    with pytest.raises(CaseListError, match="Patient 'p1' is in training and validation"):
        split(listed(8, validation=("c2",)), share=share, seed=0)
