"""Checkpoints like the published ones, filled with the reference weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from difftumor.models.segmenters import build_segmenter
from tests.reference import load_reference, published_keys, reference_state, reference_weight


def entry(key: str, shape: tuple[int, ...]) -> Tensor:
    value = reference_weight(key, shape)
    return torch.zeros(shape, dtype=torch.int64) if value is None else torch.from_numpy(value)


def autoencoder_entries() -> dict[str, Tensor]:
    """Everything that ``state_dict`` holds, the perceptual network included; discriminators are thinned out."""
    kept = {key: shape for key, shape in published_keys("autoencoder").items() if ".model3." not in key}
    state = {key: entry(key, shape) for key, shape in kept.items()}
    return {
        **state,
        "perceptual_model.net.slice1.0.weight": torch.zeros(4, 3, 3, 3),
        "perceptual_model.lin0": torch.ones(2),
    }


def config() -> Any:
    """The kind of config that training put into the checkpoint."""
    content = {
        "model": {"embedding_dim": 8, "n_codes": 16384, "lr": 3e-4, "downsample": [4, 4, 4], "norm": None, "on": True},
        "dataset": {"root": "${oc.env:HOME}", "split": "???", "lr": "${model.lr}"},
    }
    made = OmegaConf.create(content)
    OmegaConf.set_struct(made, True)
    assert made.dataset.lr == 3e-4  # fills the caches that are pickled along
    return made


def lightning(state: Mapping[str, Tensor], **changes: Any) -> dict[str, Any]:
    """A checkpoint of Lightning 1.6."""
    weights = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(weights.parameters())
    weights(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    progress = {"total": {"ready": 7, "completed": 7}, "current": {"ready": 7, "completed": 7}}
    return {
        "epoch": 6,
        "global_step": 200_000,
        "pytorch-lightning_version": "1.6.5",
        "state_dict": dict(state),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": progress}},
        "callbacks": {
            "ModelCheckpoint{'monitor': 'val/recon_loss', 'every_n_train_steps': 0}": {
                "monitor": "val/recon_loss", "best_model_score": torch.tensor(0.02), "best_model_path": "/a/b.ckpt",
                "best_k_models": {"/a/b.ckpt": torch.tensor(0.02)},
            }
        },
        "optimizer_states": [optimizer.state_dict(), optimizer.state_dict()],
        "lr_schedulers": [],
        "native_amp_scaling_state": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 7},
        "hparams_name": "cfg",
        "hyper_parameters": {"cfg": config()},
        **changes,
    }  # fmt: skip


def schedule(timesteps: int) -> dict[str, Tensor]:
    """The tables of the cosine schedule, computed in float64; those that the reference stores are the stored ones."""
    t = np.arange(timesteps + 1) / timesteps
    squares = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    betas = np.minimum(1 - squares[1:] / squares[:-1], 0.9999)
    cumprod = np.cumprod(1 - betas)
    previous = np.append(1.0, cumprod[:-1])
    variance = betas * (1 - previous) / (1 - cumprod)
    tables = {
        "betas": betas,
        "alphas_cumprod": cumprod,
        "alphas_cumprod_prev": previous,
        "sqrt_alphas_cumprod": np.sqrt(cumprod),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - cumprod),
        "log_one_minus_alphas_cumprod": np.log(1 - cumprod),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / cumprod),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / cumprod - 1),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": betas * np.sqrt(previous) / (1 - cumprod),
        "posterior_mean_coef2": (1 - previous) * np.sqrt(1 - betas) / (1 - cumprod),
    }
    stored = load_reference("diffusion")
    merged = {name: stored.get(f"T{timesteps}_{name}", table.astype(np.float32)) for name, table in tables.items()}
    return {name: torch.from_numpy(table) for name, table in merged.items()}


def diffusion_checkpoint(autoencoder: Mapping[str, Tensor], *, timesteps: int = 4, **changes: Any) -> dict[str, Any]:
    """``{step, model, ema, scaler}``."""
    names = published_keys("diffusion", "denoise_fn.")
    # The rotary frequencies are what a denoiser computes by itself.
    frequencies = 1 / 10_000 ** (torch.arange(0, 32, 2).float() / 32)
    denoiser = {
        f"denoise_fn.{name}": frequencies if name.endswith("freqs") else entry(f"denoise_fn.{name}", shape)
        for name, shape in names.items()
    }
    tables = schedule(timesteps)
    ema = {**tables, **denoiser, **{f"vqgan.{name}": value for name, value in autoencoder.items()}}
    model = {"betas": tables["betas"]}  # of no use; the real one is as large as the average
    return {"step": 60_000, "model": model, "ema": ema, "scaler": {"scale": 65536.0, "_growth_tracker": 3}, **changes}


def segmenter_checkpoint(name: str, *, prefix: str = "", **options: Any) -> tuple[dict[str, Any], nn.Module]:
    """``{epoch, best_acc, state_dict}`` with the published names, and the network whose weights it holds."""
    network = build_segmenter(name, **options)
    computed = {key: value.clone() for key, value in network.state_dict().items() if not value.is_floating_point()}
    reference_state(network).load_state_dict(computed, strict=False)
    state = {}
    for key, value in network.state_dict().items():
        published = key.replace("mlp.linear1", "mlp.fc1").replace("mlp.linear2", "mlp.fc2")
        state[prefix + published] = value
    if name == "swinunetr":
        width = len(state[f"{prefix}swinViT.patch_embed.proj.weight"])
        state |= {f"{prefix}swinViT.norm.{part}": torch.ones(16 * width) for part in ("weight", "bias")}
    # As the mean of a list of NumPy's numbers comes out.
    return {"epoch": 1999, "best_acc": np.mean([0.5, 0.75]), "state_dict": state}, network


def saved(content: Any, path: Path, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path, **options)
    return path
