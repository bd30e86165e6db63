"""The tumor synthesizer: draws records, and applies them to CT."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from difftumor.diffusion.latent import LatentCodec, Masked
from difftumor.diffusion.samplers import SamplerConfig
from difftumor.diffusion.schedule import NoiseSchedule
from difftumor.errors import SynthesisError
from difftumor.grids import Box, triple
from difftumor.intensity import IntensityWindow
from difftumor.networks.denoiser import Denoiser
from difftumor.organs import ORGAN, TUMOR, Organ
from difftumor.seeding import Key
from difftumor.synthesis.blending import add_change, blend_change, blurred_weight
from difftumor.synthesis.drawing import draw_tumors
from difftumor.synthesis.patches import Patch, PlacedTumor, plan_patches, take_patch
from difftumor.synthesis.placement import Room
from difftumor.synthesis.records import TumorRecord, Voxel
from difftumor.synthesis.shapes import tumor_shape
from difftumor.synthesis.texture import DiffusionTexture, Precision


@dataclass(frozen=True, eq=False)
class Synthesis:
    """CT with tumors, and what belongs to it.

    Args:
        ct_hu: (B, 1, X, Y, Z) float32; bit-identical to the input outside the halo.
        labels: uint8: 0 background, 1 organ, 2 tumor.
        lesions: int32: 0, or the number of the tumor, in the order of the records from 1.
        halo: bool: voxels whose weight is over 0.
        change_hu: float32, exactly 0 outside the halo.
        records: What was applied, per element.
    """

    ct_hu: Tensor
    labels: Tensor
    lesions: Tensor
    halo: Tensor
    change_hu: Tensor
    records: tuple[tuple[TumorRecord, ...], ...]


class TumorSynthesizer:
    """Makes tumors in CT in model space.

    Args:
        organ: Where tumors grow, and the rules of their placement and blending.
        codec: Between CT and latent.
        denoiser: Diffusion model for this organ.
        schedule: The model's noise schedule.
        sampler: How to sample; by default DDPM over all steps.
        window: HU that the networks see.
        patch: Size of what the networks see at once, one number or one per axis.
        spacing_mm: Voxel size of model space.
        patches_at_once: Patches that go through the networks together; bounds the memory.
        masked: Where the tumor is taken out of the condition, as in the denoiser's training.
        precision: What the networks compute in, "fp32" or "bf16", whatever the caller's autocast.

    Raises:
        SynthesisError: The patch is no multiple of what codec and denoiser halve.
    """

    def __init__(
        self,
        *,
        organ: Organ,
        codec: LatentCodec,
        denoiser: Denoiser,
        schedule: NoiseSchedule,
        sampler: SamplerConfig | None = None,
        window: IntensityWindow | None = None,
        patch: int | Sequence[int] = 96,
        spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
        patches_at_once: int = 4,
        masked: Masked = "image",
        precision: Precision = "fp32",
    ) -> None:
        self.organ = organ
        self.patch = triple([patch] * 3 if isinstance(patch, int) else patch)
        x, y, z = (float(step) for step in spacing_mm)
        self.spacing_mm = (x, y, z)
        self._texture = DiffusionTexture(
            codec=codec,
            denoiser=denoiser,
            schedule=schedule,
            sampler=sampler,
            window=window,
            patches_at_once=patches_at_once,
            masked=masked,
            precision=precision,
        )
        in_slice = codec.downsampling * denoiser.in_slice_divisor
        self._multiple = (in_slice, in_slice, codec.downsampling)
        if any(size < 1 or size % step for size, step in zip(self.patch, self._multiple, strict=True)):
            raise SynthesisError(f"Patch {self.patch} must be a multiple of {self._multiple}: choose another size.")

    @property
    def device(self) -> torch.device:
        """Where the networks are; CT for ``apply`` belongs there too."""
        return self._texture.device

    def to(self, device: torch.device | str) -> "TumorSynthesizer":
        """Move the networks to a device and return self."""
        self._texture.to(device)
        return self

    @property
    def window(self) -> IntensityWindow:
        """HU that the networks see; tumors take values inside it."""
        return self._texture.window

    @property
    def sampling(self) -> dict[str, Any]:
        """How tumors are sampled: the fields of ``SamplerConfig``, and ``precision``."""
        return {**asdict(self._texture.sampler), "precision": self._texture.precision}

    def draw(
        self,
        organ_mask_XYZ: np.ndarray | Tensor,
        *,
        size: str,
        count: int,
        seed: int,
        keys: tuple[Key, ...] = (),
        affine: np.ndarray | None = None,
        open_border: bool = True,
    ) -> tuple[TumorRecord, ...]:
        """Draw tumors for one organ, without touching a CT.

        Args:
            organ_mask_XYZ: Organ in model space; any nonzero voxel counts.
            size: ``"tiny"``, ``"small"``, ``"medium"``, ``"large"``, ``"early"`` (tiny or small, equal chance each) or
                ``"late"`` (medium or large).
            count: Tumors wanted.
            seed: With ``keys``, decides everything; the first tumors do not depend on how many follow.
            keys: For instance ``("epoch", 3, "sample", 17)``.
            affine: (4, 4), voxels of the mask to world mm, for ``center_mm``; by default the spacing alone.
            open_border: Whether tumors may be cut by the array's border, as in a training crop.

        Returns:
            The records; fewer than ``count`` where the organ has no room for more.

        Raises:
            SynthesisError: The mask is empty, or not one of the tumors has room.
            ConfigError: The size is unknown.
        """
        return draw_tumors(
            organ_mask_XYZ.cpu().numpy() if isinstance(organ_mask_XYZ, Tensor) else organ_mask_XYZ,
            organ=self.organ,
            texture=self._texture.name,
            size=size,
            count=count,
            spacing_mm=self.spacing_mm,
            seed=seed,
            keys=keys,
            affine=affine,
            open_border=open_border,
        )

    @torch.no_grad()
    def apply(
        self,
        ct_hu_B1XYZ: Tensor,
        organ_mask_B1XYZ: Tensor,
        records: Sequence[Sequence[TumorRecord]],
        *,
        patch_per_tumor: bool = False,
    ) -> Synthesis:
        """Apply records to a batch of CT; the same arguments give the same tumors.

        Args:
            ct_hu_B1XYZ: CT in HU, model space; not modified.
            organ_mask_B1XYZ: Organ on the same device; any nonzero voxel counts.
            records: Tumors of every element, possibly none, as ``draw`` returned them for its organ mask.
            patch_per_tumor: Give every tumor a patch of its own, also where the CT has the size of one patch.

        Raises:
            SynthesisError: Shapes differ, or a record does not fit: drawn for another generator, spacing or mask.
        """
        ct = ct_hu_B1XYZ.float()
        if ct.ndim != 5 or ct.shape[1] != 1 or organ_mask_B1XYZ.shape != ct.shape or len(records) != len(ct):
            raise SynthesisError(
                f"CT {tuple(ct.shape)}, organ mask {tuple(organ_mask_B1XYZ.shape)} and {len(records)} lists of records "
                "don't belong together: give (B, 1, X, Y, Z) twice and B lists."
            )
        organ = organ_mask_B1XYZ != 0
        shape = triple(ct.shape[2:])
        lesions = torch.zeros(ct.shape, dtype=torch.int32)
        tumors: list[PlacedTumor] = []
        for element, drawn in enumerate(records):
            tumors += self._place(element, organ[element, 0].cpu().numpy(), drawn, lesions[element, 0].numpy())
        lesions = lesions.to(ct.device)
        change, weight = torch.zeros_like(ct), torch.zeros_like(ct)
        patches = plan_patches(
            tumors, shape, self.patch, self._multiple, together=shape == self.patch and not patch_per_tumor
        )
        for patch, texture_hu in self._textures(patches, ct, lesions):
            self._blend(patch, texture_hu, ct, lesions, change, weight)
        # Where halos of several tumors overlap, their weights may sum to more than one.
        change = change / weight.clamp(min=1.0)
        halo = weight > 0
        labels = organ.to(torch.uint8) * ORGAN
        labels[lesions > 0] = TUMOR
        return Synthesis(add_change(ct, change, halo), labels, lesions, halo, change, tuple(map(tuple, records)))

    def _place(
        self, element: int, organ_XYZ: np.ndarray, drawn: Sequence[TumorRecord], lesions_XYZ: np.ndarray
    ) -> Iterator[PlacedTumor]:
        """Write the tumors of one element into its lesion map."""
        if not drawn:
            return
        room = Room(organ_XYZ, self.spacing_mm, erosion_voxels=self.organ.erosion_voxels)
        for instance, record in enumerate(drawn, start=1):
            self._check_record(record, triple(organ_XYZ.shape))
            box, mask = room.cut(tumor_shape(record), record.center_voxel, may_leave=record.may_leave_organ)
            if not mask.any():
                raise SynthesisError(
                    f"Tumor {instance} at voxel {record.center_voxel} has no room in the organ mask: "
                    "apply records to the mask they were drawn for."
                )
            room.take(box, mask)
            lesions_XYZ[box.slices][mask] = instance
            own = Box.around(mask)
            offset = np.array(box.start)
            yield PlacedTumor(element, instance, record, Box(triple(own.start + offset), triple(own.stop + offset)))

    def _check_record(self, record: TumorRecord, shape: Voxel) -> None:
        if record.generator != self._texture.name or record.spacing_mm != self.spacing_mm:
            raise SynthesisError(
                f"A record for generator {record.generator!r} at {record.spacing_mm} mm cannot be applied by "
                f"{self._texture.name!r} at {self.spacing_mm} mm: use the model it was drawn for."
            )
        if not all(0 <= index < size for index, size in zip(record.center_voxel, shape, strict=True)):
            raise SynthesisError(
                f"A record's center {record.center_voxel} lies outside the CT of shape {shape}: "
                "apply records to the grid they were drawn for."
            )

    def _textures(self, patches: list[Patch], ct: Tensor, lesions: Tensor) -> Iterator[tuple[Patch, Tensor]]:
        """Run the networks, over all patches of one size together; patches keep their order."""
        for _, members in groupby(patches, key=lambda patch: patch.box.shape):
            group = list(members)
            ct_B1XYZ = torch.stack([take_patch(ct[patch.element, 0], patch.box)[None] for patch in group])
            masks = []
            for patch in group:
                local = take_patch(lesions[patch.element, 0], patch.box)
                numbers = torch.tensor([tumor.instance for tumor in patch.tumors], device=local.device)
                masks.append(torch.isin(local, numbers.to(local.dtype))[None])
            textures = self._texture.make(ct_B1XYZ, torch.stack(masks), [patch.seed for patch in group])
            yield from zip(group, textures[:, 0], strict=True)

    def _blend(
        self, patch: Patch, texture_hu: Tensor, ct: Tensor, lesions: Tensor, change: Tensor, weight: Tensor
    ) -> None:
        """Add one patch's change and weight to those of its element, in place."""
        window = self.window
        shape = triple(ct.shape[2:])
        decoded = self.organ.blend == "decoded"
        if decoded and patch.whole:
            # The published recipe for training crops: the decoded patch as it is.
            healthy = ct[patch.element, 0].clamp(window.low_hu, window.high_hu)
            change[patch.element, 0] = texture_hu - healthy
            weight[patch.element, 0] = 1.0
            return
        for tumor in patch.tumors:
            box = tumor.halo_box(shape)
            index = (patch.element, 0, *box.slices)
            mask = lesions[index] == tumor.instance
            own = blurred_weight(mask, tumor.record.blur_sigma_voxels)
            if decoded:
                # In a scan only the rim is blended: the tumor itself is the decoded patch.
                own = torch.maximum(own, mask.float())
            healthy = ct[index].clamp(window.low_hu, window.high_hu)
            inside = tuple(slice(a - o, b - o) for a, b, o in zip(box.start, box.stop, patch.box.start, strict=True))
            change[index] += blend_change(healthy, texture_hu[inside], own)
            weight[index] += own
