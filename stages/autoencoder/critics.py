"""The two discriminators of stage 1 and the losses between them and the autoencoder (paper, eqs. 3 and 4).

Legend of shape suffixes: B batch, C channel (one), Z X Y voxels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from difftumor.models.discriminators import SliceDiscriminator, VolumeDiscriminator
from stages.autoencoder.losses import discriminator_loss, feature_matching, generator_loss, take_slices
from stages.autoencoder.options import Adversarial

AXIAL = 2  # axis Z of (B, C, Z, X, Y)
# From so many slices on, none of the volume discriminator's convolutions has an input thinner than its kernel.
NO_LONGER_THIN = 18
Sight = Mapping[str, tuple[Tensor, ...]]


class Critics(nn.Module):
    """A discriminator of axial slices and one of volumes.

    Args:
        base_channels: Width of both.
        kind: Their loss.
    """

    def __init__(self, *, base_channels: int, kind: Adversarial) -> None:
        super().__init__()
        self.slice = SliceDiscriminator(base_channels=base_channels)
        self.volume = VolumeDiscriminator(base_channels=base_channels)
        self.kind: Adversarial = kind

    def see(self, ct_BCZXY: Tensor, positions_B: Tensor) -> Sight:
        """Return the outputs of all blocks of both.

        Args:
            ct_BCZXY: CT or reconstruction in [-1, 1].
            positions_B: Number of the axial slice that is judged in each element.
        """
        with _exact_if_thin(ct_BCZXY):
            return {"slice": self.slice(take_slices(ct_BCZXY, positions_B, AXIAL)), "volume": self.volume(ct_BCZXY)}

    def demands(self, fake_BCZXY: Tensor, positions_B: Tensor, real: Sight) -> dict[str, Tensor]:
        """Return what the autoencoder minimizes against both; no gradient reaches the discriminators.

        Args:
            fake_BCZXY: Reconstruction, with its graph.
            positions_B: As in ``real``.
            real: What `see` gave for the CT.

        Returns:
            ``slice_adversarial``, ``volume_adversarial`` and ``feature_matching``, the sum of both (eq. 4).
        """
        with self._frozen():
            fake = self.see(fake_BCZXY, positions_B)
        losses = {f"{name}_adversarial": generator_loss(fake[name][-1].float(), self.kind) for name in fake}
        matching = [feature_matching(fake[name], real[name]) for name in fake]
        return {**losses, "feature_matching": torch.stack(matching).sum()}

    def losses(self, fake_BCZXY: Tensor, positions_B: Tensor, real: Sight) -> dict[str, Tensor]:
        """Return what the discriminators minimize: ``slice_discriminator`` and ``volume_discriminator`` (eq. 3).

        Args:
            fake_BCZXY: Reconstruction; no gradient reaches the autoencoder.
            positions_B: As in ``real``.
            real: What `see` gave for the CT, with its graph.
        """
        fake = self.see(fake_BCZXY.detach(), positions_B)
        return {
            f"{name}_discriminator": discriminator_loss(real[name][-1].float(), fake[name][-1].float(), self.kind)
            for name in fake
        }

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        self.requires_grad_(False)
        try:
            yield
        finally:
            self.requires_grad_(True)


def _exact_if_thin(ct_BCZXY: Tensor) -> AbstractContextManager[object]:
    """Keep thin crops out of 16 bits on a CPU.

    There, oneDNN's bfloat16 gradient of a 3-D convolution's weights is uninitialized memory in part where the input
    is thinner along its first axis than the kernel (jit_bf16:avx512_core_bf16 of oneDNN 3.13).
    """
    if ct_BCZXY.device.type == "cpu" and ct_BCZXY.shape[AXIAL] < NO_LONGER_THIN:
        return torch.autocast("cpu", enabled=False)
    return nullcontext()
