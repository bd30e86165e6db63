"""Stage 1 on two processes: the same on both, and the same as one process with the joint batch."""

import pytest
import torch
from pytorch_lightning.callbacks import Callback

from tests.stages.autoencoder_training import Batches, SliceDistance, module
from tests.stages.ranks import trainer_of

STEPS = 11  # one of them is skipped
NETWORK = {"base_channels": 2, "norm_groups": 2, "codes": 200}


class Keep(Callback):
    """Writes every rank's state when training ends."""

    def __init__(self, folder):
        self.folder = str(folder)

    def on_train_end(self, trainer, pl_module):
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        kept = {"state": pl_module.state_dict(), "logged": logged, "skipped": pl_module.steps.state_dict()}
        torch.save(kept, f"{self.folder}/{trainer.global_rank}.pt")


def train(folder, *, ranks, poisoned=(), **options):
    """Train; returns what each rank ends with."""
    folder.mkdir()
    ours = module(perceptual=SliceDistance(), perceptual_weight=4.0, **options)
    trainer_of(ranks, callbacks=[Keep(folder)]).fit(ours, Batches(STEPS, 4, poisoned))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(ranks)]


def check_same(one, two):
    """Bit-identical."""
    for name, value in one["state"].items():
        if not each_rank_has_its_own(name):
            assert torch.equal(two["state"][name], value), name


def check_alike(one, two):
    """Training has moved everything by the same, but for float sums and a vector halfway between two codes."""
    start = module().state_dict()
    for name, value in one["state"].items():
        if not each_rank_has_its_own(name) and not torch.equal(value, start[name]):
            apart = (two["state"][name] - value).norm() / (value - start[name]).norm()
            assert apart < 0.02, f"{name}: {apart}"


def each_rank_has_its_own(name):
    # Statistics of the discriminators, which nothing reads.
    return "running" in name or "num_batches" in name


@pytest.mark.nightly
@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_two_processes_agree_with_each_other_and_with_one(tmp_path, update):
    options = {"start_step": STEPS, "clip_norm": 0.5, "poisoned": (4,), "codebook": {"update": update, "decay": 0.8}}
    one, two = train(tmp_path / "two", ranks=2, **options)
    (joint,) = train(tmp_path / "joint", ranks=1, **options)
    check_same(one, two)
    check_alike(joint, one)
    assert one["skipped"] == two["skipped"] == joint["skipped"] == {"skipped": 1, "in_a_row": 0}
    for name in ("loss", "perceptual", "dead_codes", "autoencoder_gradient_norm"):
        expected = pytest.approx(joint["logged"][f"training/{name}"], rel=1e-3)
        assert one["logged"][f"training/{name}"] == two["logged"][f"training/{name}"] == expected
    if update == "ema":  # the halves of a batch, each in micro-batches, are still the same elements
        parted, _ = train(tmp_path / "parted", ranks=2, accumulate=2, **options)
        check_alike(one, parted)


@pytest.mark.nightly
def test_discriminators_join_midway_on_both(tmp_path):
    before = module().state_dict()
    one, two = train(tmp_path / "two", ranks=2, start_step=5, adversarial="vanilla", poisoned=(7,))
    check_same(one, two)
    assert one["skipped"] == {"skipped": 1, "in_a_row": 0}
    weights = [name for name in before if name.startswith("critics") and name.endswith("weight")]
    assert weights
    assert not any(torch.equal(one["state"][name], before[name]) for name in weights)
