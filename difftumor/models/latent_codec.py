"""The latent codec: the one place that knows axis order and latent scaling.

Outside, a CT is (B, 1, X, Y, Z) in [-1, 1]. Inside, latents are (B, C, z, x, y), depth first, scaled so that the
codebook spans [-1, 1]. `LatentCodec.decode` undoes the layout and the scale of `LatentCodec.encode` exactly.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from difftumor.errors import ConfigError, ShapeError
from difftumor.models.autoencoder import Autoencoder
from difftumor.models.diffusion_config import Masked


class LatentCodec:
    """Turn CT into scaled latents and back, with a trained autoencoder that stays as it is.

    No result has autograd history.

    Args:
        autoencoder: Trained, in eval mode; the codec follows it to its device.
    """

    def __init__(self, autoencoder: Autoencoder) -> None:
        self.autoencoder = autoencoder

    @property
    def downsampling(self) -> int:
        """CT voxels per latent voxel along each axis."""
        return self.autoencoder.downsampling

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return self.autoencoder.latent_channels

    def latent_shape(self, crop_XYZ: Sequence[int]) -> tuple[int, int, int, int]:
        """Return the shape (C, z, x, y) of the latent of a crop.

        Raises:
            ShapeError: The crop is not a multiple of `downsampling` along every axis.
        """
        d = self.downsampling
        if len(crop_XYZ) != 3 or any(size < 1 or size % d for size in crop_XYZ):
            raise ShapeError(
                f"the crop (X, Y, Z) = {tuple(crop_XYZ)} must be a multiple of {d} along every axis, because the "
                f"latent has 1/{d} of its resolution; crop or pad it first"
            )
        X, Y, Z = crop_XYZ
        return self.latent_channels, Z // d, X // d, Y // d

    @torch.no_grad()
    def encode(self, ct_signed_BCXYZ: Tensor) -> Tensor:
        """Return the scaled latent (B, C, z, x, y), float32 and not quantized, of a CT (B, 1, X, Y, Z) in [-1, 1].

        Raises:
            ShapeError: The CT has another shape, or a size that is not a multiple of `downsampling`.
            ConfigError: The autoencoder is not trained.
        """
        self._check_ct(ct_signed_BCXYZ)
        return self._scale(self.autoencoder.encode(depth_first(ct_signed_BCXYZ)).float())

    @torch.no_grad()
    def decode(self, latent_BCZXY: Tensor) -> Tensor:
        """Return the CT (B, 1, X, Y, Z), float32 and about [-1, 1], of a scaled latent (B, C, z, x, y).

        The latent is replaced with the nearest codes of the codebook.

        Raises:
            ShapeError: The latent doesn't fit the autoencoder.
            ConfigError: The autoencoder is not trained.
        """
        codebook = self.autoencoder.codebook
        codes_BCZXY = codebook.lookup(codebook.nearest(self._unscale(latent_BCZXY.float())))
        return depth_last(self.autoencoder.decode(codes_BCZXY).float())

    @torch.no_grad()
    def condition(self, ct_signed_BCXYZ: Tensor, tumor_mask_B1XYZ: Tensor, *, masked: Masked = "image") -> Tensor:
        """Return the condition of the denoiser: the healthy latent, and the mask of the tumor.

        Args:
            ct_signed_BCXYZ: (B, 1, X, Y, Z) in [-1, 1].
            tumor_mask_B1XYZ: (B, 1, X, Y, Z), 1 or True in the tumor, 0 elsewhere.
            masked: Where the tumor is taken out. "image": tumor voxels of the CT are set to 0 and the result is
                encoded, as in the published models. "latent": the latent is multiplied with 1 - m, as in the formula
                of the paper's section 3.2.

        Returns:
            (B, C + 1, z, x, y): the healthy latent, and the mask, nearest-neighbor resized, in {-1, 1}.

        Raises:
            ShapeError: CT and mask differ in shape, or don't fit the autoencoder.
            ConfigError: ``masked`` is unknown, the mask is not binary, or the autoencoder is not trained.
        """
        return self._condition(ct_signed_BCXYZ, tumor_mask_B1XYZ, masked, latent_BCZXY=None)

    @torch.no_grad()
    def encode_both(
        self, ct_signed_BCXYZ: Tensor, tumor_mask_B1XYZ: Tensor, *, masked: Masked = "image"
    ) -> tuple[Tensor, Tensor]:
        """Return what `encode` and what `condition` return, for training, and encode no CT twice."""
        latent_BCZXY = self.encode(ct_signed_BCXYZ)
        return latent_BCZXY, self._condition(ct_signed_BCXYZ, tumor_mask_B1XYZ, masked, latent_BCZXY=latent_BCZXY)

    def _condition(self, ct_BCXYZ: Tensor, mask_B1XYZ: Tensor, masked: str, *, latent_BCZXY: Tensor | None) -> Tensor:
        """Return the condition; a latent that is given is the CT's."""
        self._check_ct(ct_BCXYZ)
        if mask_B1XYZ.shape != ct_BCXYZ.shape:
            raise ShapeError(
                f"the tumor mask {tuple(mask_B1XYZ.shape)} must have the CT's shape {tuple(ct_BCXYZ.shape)}"
            )
        if not torch.all((mask_B1XYZ == 0) | (mask_B1XYZ == 1)):
            raise ConfigError("the tumor mask must hold 0 and 1 only; compare a label map with the tumor's label first")
        tumor_B1XYZ = mask_B1XYZ.to(ct_BCXYZ.device, torch.float32)

        size_zxy = self.latent_shape(ct_BCXYZ.shape[2:])[1:]
        m_B1ZXY = F.interpolate(depth_first(tumor_B1XYZ), size=size_zxy, mode="nearest")
        if masked == "image":
            healthy_BCZXY = self.encode(ct_BCXYZ * (1 - tumor_B1XYZ))
        elif masked == "latent":
            # z_healthy = (1 - m) ⊙ z_0   (DiffTumor, section 3.2, above eq. 5)
            healthy_BCZXY = (1 - m_B1ZXY) * (self.encode(ct_BCXYZ) if latent_BCZXY is None else latent_BCZXY)
        else:
            raise ConfigError(f"the condition's masked must be 'image' or 'latent', not {masked!r}")
        return torch.cat((healthy_BCZXY, 2 * m_B1ZXY - 1), dim=1)

    def _check_ct(self, ct_BCXYZ: Tensor) -> None:
        if ct_BCXYZ.ndim != 5 or ct_BCXYZ.shape[1] != 1:
            raise ShapeError(f"the CT must be (B, 1, X, Y, Z), not {tuple(ct_BCXYZ.shape)}")
        self.latent_shape(ct_BCXYZ.shape[2:])

    def _codebook_range(self) -> tuple[Tensor, Tensor]:
        # Looked up at every call: a codec may be made before its autoencoder's weights are loaded or moved.
        low, high = torch.aminmax(self.autoencoder.codebook.embeddings)
        if not low < high:
            raise ConfigError(
                "the autoencoder's codebook holds no codes yet; train the autoencoder or load a trained one"
            )
        return low, high

    def _scale(self, features: Tensor) -> Tensor:
        low, high = self._codebook_range()
        return (features - low) / (high - low) * 2 - 1

    def _unscale(self, latent: Tensor) -> Tensor:
        low, high = self._codebook_range()
        return (latent + 1) / 2 * (high - low) + low


def depth_first(x_BCXYZ: Tensor) -> Tensor:
    """Return (B, C, X, Y, Z) as (B, C, Z, X, Y), contiguous."""
    return x_BCXYZ.permute(0, 1, 4, 2, 3).contiguous()


def depth_last(x_BCZXY: Tensor) -> Tensor:
    """Return (B, C, Z, X, Y) as (B, C, X, Y, Z), contiguous."""
    return x_BCZXY.permute(0, 1, 3, 4, 2).contiguous()
