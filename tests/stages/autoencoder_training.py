"""A module of stage 1 shrunk to a second, batches for it, and what training leaves behind."""

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from difftumor.datasets.sampling import SeededSampler
from difftumor.scans.intensity import IntensityWindow
from difftumor.seeding import torch_generator
from stages.autoencoder.losses import PLANES, take_slices
from stages.autoencoder.module import AutoencoderModule
from stages.autoencoder.options import (
    AutoencoderNetworkOptions,
    AutoencoderTrainingOptions,
    ClippedAdamOptions,
    CodebookOptions,
    DiscriminatorOptions,
    LossWeights,
)

WEIGHTS = {
    "l1": 4.0, "codebook": 1.0, "commitment": 0.25, "slice_adversarial": 1.0, "volume_adversarial": 1.0,
    "feature_matching": 4.0,
}  # fmt: skip
NETWORK = {"base_channels": 2, "levels": 2, "latent_channels": 8, "codes": 16, "norm_groups": 2}
CODEBOOK = {"update": "ema", "decay": 0.99, "restart_below": 1.0, "updates_per_step": 1}
TRAINER = {
    "accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False, "use_distributed_sampler": False,
}  # fmt: skip


class SliceDistance(torch.nn.Module):
    """Stands for the perceptual loss: it looks at the same slices, and needs no weights."""

    def forward(self, fake, real, positions_3B):
        pairs = zip(PLANES, positions_3B, strict=True)
        return sum((take_slices(fake, p, a) - take_slices(real, p, a)).square().mean() for a, p in pairs)


def module(
    *,
    lr=1e-3,
    betas=(0.9, 0.999),
    clip_norm=None,
    milestones=(),
    start_step=0,
    adversarial="hinge",
    codebook=CODEBOOK,
    weights=WEIGHTS,
    seed=0,
    perceptual=None,
    perceptual_weight=0.0,
    **training,
):
    """Make a small module; ``training`` are fields of AutoencoderTrainingOptions."""
    steps = {
        "steps": 8, "steps_per_epoch": 8, "accumulate": 1, "nonfinite_limit": 20, "compile": False,
        "gradient_checkpointing": False,
    }  # fmt: skip
    return AutoencoderModule(
        seed=seed,
        network=AutoencoderNetworkOptions(**NETWORK),
        codebook=CodebookOptions(**{**CODEBOOK, **codebook}),
        discriminators=DiscriminatorOptions(base_channels=2, start_step=start_step, loss=adversarial),
        weights=LossWeights(**weights),
        perceptual=perceptual,
        perceptual_weight=perceptual_weight,
        optimizer=ClippedAdamOptions(lr=lr, betas=betas, clip_norm=clip_norm, milestones=milestones, gamma=0.1),
        training=AutoencoderTrainingOptions(**{**steps, **training}),
        window=IntensityWindow(),
        spacing_mm=(1, 1, 1),
        crop=(16, 16, 16),
    )


def crops(count, seed=7):
    """CT of a few HU around water, smooth enough to be learned a little."""
    coarse = 100 * torch.randn(count, 1, 8, 8, 8, generator=torch_generator(seed))
    return torch.nn.functional.interpolate(coarse, scale_factor=2, mode="trilinear")


class Batches(pl.LightningDataModule):
    """Crops in the order of the stages' sampler, some of them poisoned.

    Args:
        steps: Length of the only epoch.
        batch: Elements per step, over all ranks.
        poisoned: Steps whose elements all are NaN.
    """

    def __init__(self, steps, batch, poisoned=()):
        super().__init__()
        self.steps, self.batch, self.poisoned = steps, batch, poisoned

    def train_dataloader(self):
        ct = crops(self.steps * self.batch)
        ranks = self.trainer.world_size
        sampler = SeededSampler(len(ct), rank=self.trainer.global_rank, world_size=ranks, shuffle=False)
        for step in self.poisoned:
            ct[step * self.batch] = torch.nan
        items = [{"ct": x} for x in ct]
        return torch.utils.data.DataLoader(
            _Keyed(items), batch_size=self.batch // ranks, sampler=sampler, generator=torch_generator(0)
        )


class _Keyed(torch.utils.data.Dataset):
    def __init__(self, items):
        self.items = items

    def __getitem__(self, key):
        return self.items[key[1]]


class History(Callback):
    """Notes what every step has logged."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps.append({name.removeprefix("training/"): float(v) for name, v in trainer.callback_metrics.items()})


def fit(ours, data, *callbacks, **options):
    """Train; nothing is written. Returns what every step has logged so far."""
    history = History()
    pl.Trainer(**{**TRAINER, **options}, callbacks=[history, *callbacks]).fit(ours, data)
    return history.steps


def state(network):
    """Copies of all weights and buffers, without the count of batches."""
    return {name: value.clone() for name, value in network.state_dict().items() if "num_batches" not in name}


def changed(network, before):
    """Names of what differs from a former state."""
    return {name for name, value in state(network).items() if not torch.equal(value, before[name])}
