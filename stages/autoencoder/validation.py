"""Validation of stage 1: whole held-out scans, reconstructed window by window and measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric

from difftumor.evaluation.autoencoder.fidelity import measure_fidelity
from difftumor.evaluation.autoencoder.reconstruction import reconstruct
from difftumor.models.autoencoder import Autoencoder
from difftumor.scans.intensity import IntensityWindow
from stages.autoencoder.data import WholeScan
from stages.autoencoder.pictures import ScanPictures
from stages.run.module import StageModule

# The best network is chosen by this.
MONITOR = "validation/psnr"
# Larger scans are blended and measured on the CPU, and only their windows visit the GPU: some ten copies are needed.
MOST_DEVICE_VOXELS = 2**26
NAMES = ("psnr", "ssim", "l1", "mae_hu", "organ_mae_hu", "organ_bias_hu", "edge_ratio", "noise_ratio")


class ScanMetrics(Metric):
    """Means over scans, and what the codes that all scans took together say; over all ranks, whatever share each has.

    Args:
        codes: Codes of the codebook.
    """

    full_state_update = False
    sums: Tensor
    counts: Tensor
    code_counts_K: Tensor

    def __init__(self, codes: int) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(len(NAMES), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(len(NAMES), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("code_counts_K", torch.zeros(codes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, values: Mapping[str, float], code_counts_K: Tensor | None) -> None:
        """Add a scan.

        Args:
            values: Some of ``NAMES``; what a scan lacks does not count in the mean. Empty for no scan.
            code_counts_K: How many latent vectors took each code; None for no scan.
        """
        for place, name in enumerate(NAMES):
            if name in values:
                self.sums[place] += values[name]
                self.counts[place] += 1
        if code_counts_K is not None:
            self.code_counts_K += code_counts_K.to(self.code_counts_K.device)

    def compute(self) -> dict[str, float]:
        """Return the means, without those that no scan has; ``perplexity`` and ``codes_used``."""
        means = {
            name: total / count
            for name, total, count in zip(NAMES, self.sums.tolist(), self.counts.tolist(), strict=True)
            if count
        }
        shares = self.code_counts_K.double() / self.code_counts_K.sum()
        perplexity = math.exp(torch.special.entr(shares).sum().item())
        return {**means, "perplexity": perplexity, "codes_used": float(self.code_counts_K.count_nonzero())}


class ScanValidation(nn.Module):
    """Measures and plots scans one by one.

    Args:
        overlap: Share of a window that its neighbor shares.
        codes: Codes of the codebook.
        window: HU that the network sees.
        crop: Windows, (x, y, z) in voxels.
        windows_per_batch: Windows that go through the network together.
        pictures: Plots some of the scans.
    """

    def __init__(
        self,
        *,
        overlap: float,
        codes: int,
        window: IntensityWindow,
        crop: Sequence[int],
        windows_per_batch: int,
        pictures: ScanPictures,
    ) -> None:
        super().__init__()
        self.overlap = overlap
        self.window = window
        self.crop = tuple(crop)
        self.windows_per_batch = windows_per_batch
        self.pictures = pictures
        self.metrics = ScanMetrics(codes)

    def start(self) -> None:
        """Forget the scans of the validation before."""
        self.metrics.reset()

    def take(self, scan: WholeScan | None, module: StageModule) -> None:
        """Measure a scan, and plot it if pictures are due; None stands for no scan."""
        if scan is None:
            self.metrics.update({}, None)
            return
        assert isinstance(module.network, Autoencoder)
        values, code_counts_K, reconstruction_hu_XYZ = self.measure(module.network, scan)
        self.metrics.update(values, code_counts_K)
        if scan.id in self.pictures.cases and self.pictures.due(module.trainer):
            self.pictures.plot(scan, reconstruction_hu_XYZ, module=module, psnr_db=values["psnr"])

    def measure(self, autoencoder: Autoencoder, scan: WholeScan) -> tuple[dict[str, float], Tensor, Tensor]:
        """Reconstruct a scan and compare.

        Returns:
            Some of ``NAMES``, how many latent vectors took each code, and the reconstruction, (X, Y, Z) in HU.
        """
        device = next(autoencoder.parameters()).device
        if scan.ct_hu_XYZ.numel() > MOST_DEVICE_VOXELS:
            device = torch.device("cpu")
        ct_hu_XYZ, organ_XYZ = scan.ct_hu_XYZ.to(device), scan.labels_XYZ.to(device) > 0
        signed_XYZ = self.window.to_signed(ct_hu_XYZ)
        result = reconstruct(
            autoencoder,
            signed_XYZ,
            window=self.crop,
            overlap=self.overlap,
            windows_per_batch=self.windows_per_batch,
        )
        with torch.autocast(device.type, enabled=False):
            l1 = F.l1_loss(result.ct_signed_XYZ, signed_XYZ).item()
            reconstruction_hu_XYZ = self.window.from_signed(result.ct_signed_XYZ)
            fidelity = measure_fidelity(
                ct_hu_XYZ,
                reconstruction_hu_XYZ,
                window=self.window,
                structures={"organ": organ_XYZ} if organ_XYZ.any() else {},
            )
        values = {"psnr": fidelity.psnr_db, "ssim": fidelity.ssim, "l1": l1, "mae_hu": fidelity.mae_hu}
        for organ in fidelity.structures.values():
            values |= {"organ_mae_hu": organ.mae_hu, "organ_bias_hu": organ.bias_hu}
        # A scan without edges or without homogeneous tissue says nothing about them.
        ratios = {"edge_ratio": fidelity.edge_ratio, "noise_ratio": fidelity.noise_ratio}
        values |= {name: value for name, value in ratios.items() if not math.isnan(value)}
        return values, result.code_counts_K, reconstruction_hu_XYZ

    def finish(self, module: StageModule) -> dict[str, float]:
        """Return the metrics of all ranks' scans, by the names they are logged under."""
        if self.pictures.due(module.trainer):
            self.pictures.show(module)
        return {f"validation/{name}": value for name, value in self.metrics.compute().items()}
