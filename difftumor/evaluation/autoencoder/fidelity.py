"""How faithful a reconstruction is: errors in HU, similarity, sharpness of edges and power of the noise.

Everything is measured within the HU window, since the network sees no more, and *in the body*: the largest connected
part of the scan above the window's lower end, and the voxels next to it. Air outside and gas inside are constant there
and would flatter every number. Lengths are in voxels of model space.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from difftumor.scans.components import largest_component
from difftumor.scans.intensity import IntensityWindow

# As Wang et al. 2004 (doi 10.1109/TIP.2003.819861): Gaussian of 1.5 voxels over 11, and the two constants.
SSIM_SIGMA, SSIM_RADIUS, SSIM_K1, SSIM_K2 = 1.5, 5, 0.01, 0.03
# Below this is lung or air, whatever the window.
LOWEST_BODY_HU = -500.0
# An edge is where the CT, smoothed by this sigma to remove noise, changes by this share of the window per voxel.
EDGE_SIGMA, EDGE_SHARE = 1.0, 0.05
# Noise is what this sigma smooths away, in tissue whose smoothed HU lie in this range and change by less than this many
# HU per voxel, also in all voxels within this distance: the middle of a vessel is flat too.
NOISE_SIGMA, NOISE_TISSUE_HU, NOISE_SLOPE_HU, NOISE_DISTANCE = 2.0, (-20.0, 200.0), 3.0, 2
# With fewer voxels, edges and noise are not measured; nor is noise in a CT that has less than this.
LEAST_VOXELS, LEAST_NOISE_HU = 100, 0.5
# Planes filtered together, and the reach of the filters: smoothing by 4 sigma, its gradient, and the distance.
_SLAB, _MARGIN = 24, 8 + 1 + NOISE_DISTANCE


@dataclass(frozen=True)
class StructureError:
    """Error inside one structure.

    Attributes:
        voxels: Its voxels.
        mae_hu: Mean absolute error; NaN without voxels.
        bias_hu: Mean error, reconstruction less CT; NaN without voxels.
    """

    voxels: int
    mae_hu: float
    bias_hu: float


@dataclass(frozen=True)
class Fidelity:
    """How faithful a reconstruction is, over the body.

    Attributes:
        psnr_db: Peak signal-to-noise ratio, the window's width being the peak; infinite without error.
        ssim: Structural similarity in 3-D, Gaussian of 1.5 voxels; 1 without error.
        mae_hu: Mean absolute error.
        bias_hu: Mean error, reconstruction less CT.
        edge_ratio: Mean gradient magnitude of the reconstruction over that of the CT, where the CT has edges. Blur
            gives less than 1, ringing or added noise more. NaN if the CT has no edges.
        noise_ratio: Power above about 0.09 cycles per voxel of the reconstruction over that of the CT, in homogeneous
            soft tissue: 0 without noise, 1 for noise as strong as the CT's. NaN if there is no such tissue, or no noise
            in it.
        codes_used: Number of codes used at least once; None if unknown.
        structures: Error inside each structure.
    """

    psnr_db: float
    ssim: float
    mae_hu: float
    bias_hu: float
    edge_ratio: float
    noise_ratio: float
    codes_used: int | None = None
    structures: Mapping[str, StructureError] = field(default_factory=dict)


def measure_fidelity(
    ct_hu_XYZ: Tensor,
    reconstruction_hu_XYZ: Tensor,
    *,
    window: IntensityWindow,
    structures: Mapping[str, Tensor] | None = None,
    code_counts_K: Tensor | None = None,
) -> Fidelity:
    """Compare a reconstruction with its CT, both in model space.

    The CT is clipped to the window, the reconstruction is not. Everything but the body mask is computed slab by slab:
    besides the two volumes this takes about twice the memory of one (measured on 400 × 400 × 300 voxels).

    Args:
        ct_hu_XYZ: (X, Y, Z) HU.
        reconstruction_hu_XYZ: (X, Y, Z) HU, on the same device.
        window: HU that the network sees.
        structures: Name to boolean mask (X, Y, Z); read one after the other, so the mapping may make them on
            access.
        code_counts_K: (codes,) how often each code was used.

    Raises:
        ValueError: The shapes differ or are not 3-D.
    """
    if ct_hu_XYZ.ndim != 3 or ct_hu_XYZ.shape != reconstruction_hu_XYZ.shape:
        raise ValueError(
            f"CT {tuple(ct_hu_XYZ.shape)} and reconstruction {tuple(reconstruction_hu_XYZ.shape)} must be two volumes "
            "of one shape"
        )
    body = body_mask(ct_hu_XYZ, window)
    inside = {
        name: _errors_inside(ct_hu_XYZ, reconstruction_hu_XYZ, mask, window, name).of_structure()
        for name, mask in (structures or {}).items()
    }
    errors = _errors_inside(ct_hu_XYZ, reconstruction_hu_XYZ, body, window, "body")
    ssim, edge_ratio, noise_ratio = _neighborhood_measures(ct_hu_XYZ, reconstruction_hu_XYZ, body, window)
    mean_square = errors.square / errors.voxels
    return Fidelity(
        psnr_db=10 * math.log10(window.width_hu**2 / mean_square) if mean_square else math.inf,
        ssim=ssim,
        mae_hu=errors.absolute / errors.voxels,
        bias_hu=errors.signed / errors.voxels,
        edge_ratio=edge_ratio,
        noise_ratio=noise_ratio,
        codes_used=None if code_counts_K is None else int(torch.count_nonzero(code_counts_K)),
        structures=inside,
    )


def body_mask(ct_hu_XYZ: Tensor, window: IntensityWindow) -> Tensor:
    """Return where fidelity is measured: the body without its gas, and the voxels next to it.

    Args:
        ct_hu_XYZ: (X, Y, Z) HU.
        window: HU that the network sees.

    Returns:
        (X, Y, Z) boolean; the whole scan if nothing is above the window's lower end.
    """
    tissue = ct_hu_XYZ > max(window.low_hu, LOWEST_BODY_HU)
    if not tissue.any():
        return torch.ones_like(tissue)
    largest = torch.from_numpy(largest_component(tissue.cpu().numpy()))
    # Both sides of the skin, so that leaks across it count.
    return grown(largest.to(ct_hu_XYZ.device))


@dataclass(frozen=True)
class _Errors:
    """Sums of errors in HU over some voxels."""

    voxels: int
    absolute: float
    signed: float
    square: float

    def of_structure(self) -> StructureError:
        if not self.voxels:
            return StructureError(0, math.nan, math.nan)
        return StructureError(self.voxels, self.absolute / self.voxels, self.signed / self.voxels)


def _errors_inside(ct: Tensor, reconstruction: Tensor, mask: Tensor, window: IntensityWindow, name: str) -> _Errors:
    if mask.shape != ct.shape:
        raise ValueError(f"structure {name!r} has shape {tuple(mask.shape)}, the scan {tuple(ct.shape)}")
    voxels, sums = 0, torch.zeros(3, dtype=torch.float64, device=ct.device)
    for _, _, place in _slabs(len(ct)):
        where = mask[place].to(ct.device, torch.bool)
        error = reconstruction[place][where].double() - _clipped(ct[place][where], window)
        voxels += error.numel()
        sums += torch.stack([error.abs().sum(), error.sum(), error.square().sum()])
    absolute, signed, square = sums.tolist()
    return _Errors(voxels, absolute, signed, square)


def _clipped(ct: Tensor, window: IntensityWindow) -> Tensor:
    return ct.float().clip(window.low_hu, window.high_hu)


def _neighborhood_measures(
    ct: Tensor, reconstruction: Tensor, body: Tensor, window: IntensityWindow
) -> tuple[float, float, float]:
    """Return SSIM, edge ratio and noise ratio from sums over slabs; each measure frees its volumes before the next."""
    # Per measure: sum of the reconstruction, sum of the CT, voxels.
    sums = {measure: torch.zeros(3, dtype=torch.float64, device=ct.device) for measure in (_ssim, _edges, _noise)}
    for around, core, place in _slabs(len(ct)):
        a, b = _clipped(ct[around], window), reconstruction[around].float()
        where = torch.zeros_like(body[around])
        where[core] = body[place]
        for measure, total in sums.items():
            total += measure(a, b, where, window)
    similarity, ones, _ = sums[_ssim].tolist()
    edges, ct_edges, edge_voxels = sums[_edges].tolist()
    noise, ct_noise, noise_voxels = sums[_noise].tolist()
    has_noise = noise_voxels >= LEAST_VOXELS and ct_noise > noise_voxels * LEAST_NOISE_HU**2
    return (
        similarity / ones,
        edges / ct_edges if edge_voxels >= LEAST_VOXELS else math.nan,
        noise / ct_noise if has_noise else math.nan,
    )


def _ssim(ct: Tensor, reconstruction: Tensor, where: Tensor, window: IntensityWindow) -> Tensor:
    unit = (reconstruction - window.low_hu) / window.width_hu  # not clipped
    similarity = structural_similarity(window.to_unit(ct), unit)
    return _sums(similarity, torch.ones_like(similarity), where)


def _edges(ct: Tensor, reconstruction: Tensor, where: Tensor, window: IntensityWindow) -> Tensor:
    edges = where & (gradient_magnitude(smoothed(ct, EDGE_SIGMA)) >= EDGE_SHARE * window.width_hu)
    return _sums(gradient_magnitude(reconstruction), gradient_magnitude(ct), edges)


def _noise(ct: Tensor, reconstruction: Tensor, where: Tensor, window: IntensityWindow) -> Tensor:
    flat = smoothed(ct, NOISE_SIGMA)
    homogeneous = where & _homogeneous(flat)
    power = (reconstruction - smoothed(reconstruction, NOISE_SIGMA)).square_()
    return _sums(power, (ct - flat).square_(), homogeneous)


def _sums(reconstruction: Tensor, ct: Tensor, where: Tensor) -> Tensor:
    """Return the sums of both inside a mask, and its voxels, as three float64 numbers."""
    values = [(volume * where).sum(dtype=torch.float64) for volume in (reconstruction, ct)]
    return torch.stack([*values, where.sum().to(torch.float64)])


def _homogeneous(flat_hu: Tensor) -> Tensor:
    """Return where a smoothed CT is soft tissue without borders."""
    low, high = NOISE_TISSUE_HU
    varied = (flat_hu < low) | (flat_hu > high) | (gradient_magnitude(flat_hu) > NOISE_SLOPE_HU)
    for _ in range(NOISE_DISTANCE):
        varied = grown(varied)
    return ~varied


def _slabs(size: int) -> Iterator[tuple[slice, slice, slice]]:
    """Yield slabs with margins, the position of the slab inside each, and its position in the volume."""
    for start in range(0, size, _SLAB):
        stop = min(start + _SLAB, size)
        first = max(0, start - _MARGIN)
        yield slice(first, min(size, stop + _MARGIN)), slice(start - first, stop - first), slice(start, stop)


# Filters over volumes (X, Y, Z) that keep their size; beyond the border the outermost voxels repeat.


def smoothed(volume_XYZ: Tensor, sigma: float, *, radius: int | None = None) -> Tensor:
    """Smooth with a Gaussian.

    Axis by axis and shift by shift: on a CPU this is five times as fast as a convolution with one channel.

    Args:
        volume_XYZ: Floats.
        sigma: In voxels.
        radius: Radius of the truncated Gaussian, in voxels; four sigma when None.
    """
    reach = math.ceil(4 * sigma) if radius is None else radius
    weights = [math.exp(-0.5 * (shift / sigma) ** 2) for shift in range(-reach, reach + 1)]
    total = sum(weights)
    for axis, size in enumerate(volume_XYZ.shape):
        padded = _extended(volume_XYZ, axis, reach)
        volume_XYZ = padded.narrow(axis, 0, size) * (weights[0] / total)
        for shift, weight in enumerate(weights[1:], start=1):
            volume_XYZ.add_(padded.narrow(axis, shift, size), alpha=weight / total)
    return volume_XYZ


def gradient_magnitude(volume_XYZ: Tensor) -> Tensor:
    """Return the length of the gradient by central differences, per voxel; one-sided and halved at the border."""
    squares = torch.zeros_like(volume_XYZ)
    for axis, size in enumerate(volume_XYZ.shape):
        padded = _extended(volume_XYZ, axis, 1)
        squares += ((padded.narrow(axis, 2, size) - padded.narrow(axis, 0, size)) / 2).square_()
    return squares.sqrt_()


def structural_similarity(a_XYZ: Tensor, b_XYZ: Tensor) -> Tensor:
    """Return the map of the structural similarity of two volumes scaled to [0, 1]."""
    c1, c2 = SSIM_K1**2, SSIM_K2**2
    mean_a, mean_b, mean_aa, mean_bb, mean_ab = (
        smoothed(values, SSIM_SIGMA, radius=SSIM_RADIUS) for values in (a_XYZ, b_XYZ, a_XYZ**2, b_XYZ**2, a_XYZ * b_XYZ)
    )
    covariance = mean_ab - mean_a * mean_b
    variances = mean_aa - mean_a**2 + mean_bb - mean_b**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return luminance * (2 * covariance + c2) / (variances + c2)


def grown(mask_XYZ: Tensor) -> Tensor:
    """Return a boolean mask grown by one voxel, corners included."""
    for axis, size in enumerate(mask_XYZ.shape):
        result = mask_XYZ.clone()
        result.narrow(axis, 1, size - 1).logical_or_(mask_XYZ.narrow(axis, 0, size - 1))
        result.narrow(axis, 0, size - 1).logical_or_(mask_XYZ.narrow(axis, 1, size - 1))
        mask_XYZ = result
    return mask_XYZ


def _extended(volume_XYZ: Tensor, axis: int, reach: int) -> Tensor:
    """Repeat the outermost voxels of one axis ``reach`` times on both sides."""
    sides = [0] * 6
    sides[2 * (2 - axis)] = sides[2 * (2 - axis) + 1] = reach
    return F.pad(volume_XYZ[None, None], sides, mode="replicate")[0, 0]
