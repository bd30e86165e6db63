"""The tumor synthesizer: draws records, and applies them to CT."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import groupby, islice
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from difftumor.errors import SynthesisError
from difftumor.scans.grid import Box, Vector, Voxel, triple
from difftumor.scans.intensity import IntensityWindow
from difftumor.scans.lesions import SizeGroup
from difftumor.scans.organs import ORGAN, TUMOR, Organ
from difftumor.seeding import Key
from difftumor.synthesis.blending import (
    Blend,
    Patch,
    PlacedTumor,
    blend_change,
    blur_radius,
    blurred_weight,
    plan_patches,
    smoothed_tissue,
    take_patch,
)
from difftumor.synthesis.draw import draw_tumors
from difftumor.synthesis.effects import MutableBatch, apply_effects
from difftumor.synthesis.generators.copy_paste import NO_SOURCES, SourceTumors
from difftumor.synthesis.generators.diffusion import DiffusionTexture
from difftumor.synthesis.generators.handcrafted import handcrafted_texture
from difftumor.synthesis.host import Host
from difftumor.synthesis.placement import Placement
from difftumor.synthesis.records import MaskRecord, TumorRecord
from difftumor.synthesis.spec import TumorSpec

# From gas to dense bone.
_ALL_HU = IntensityWindow(-1000.0, 2000.0)


@dataclass(frozen=True, eq=False)
class Synthesis:
    """A batch of CT with tumors.

    Args:
        ct_hu: (B, 1, X, Y, Z) float32; bit-identical to the input outside the halo.
        labels: uint8: 0 background, 1 organ, 2 tumor.
        lesions: int32: 0, or the number of the tumor, in the order of the records from 1.
        halo: bool: voxels whose weight is above 0.
        change_hu: float32, exactly 0 outside the halo.
        records: What was applied, per element, without tumors that were too faint.
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
        organ: Host of the tumors, with the rules of their placement and blending.
        diffusion: Diffusion model, or one for each size group; None for hand-crafted tumors only.
        spacing_mm: Voxel size of model space.
        sources: Real tumors to copy, at that voxel size.

    Raises:
        SynthesisError: The spacing is not three positive numbers.
    """

    def __init__(
        self,
        *,
        organ: Organ,
        diffusion: DiffusionTexture | Mapping[str, DiffusionTexture] | None = None,
        spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
        sources: SourceTumors = NO_SOURCES,
    ) -> None:
        if len(spacing_mm) != 3 or not all(step > 0 for step in spacing_mm):
            raise SynthesisError(f"spacing_mm is {tuple(spacing_mm)}: give three positive lengths.")
        self.organ = organ
        x, y, z = (float(step) for step in spacing_mm)
        self.spacing_mm: Vector = (x, y, z)
        if isinstance(diffusion, DiffusionTexture):
            diffusion = {group: diffusion for group in get_args(SizeGroup)}  # noqa: C420 keeps the type
        self.sources = sources
        self.diffusion: Mapping[str, DiffusionTexture] = dict(diffusion or {})
        self._device = torch.device("cpu")

    def for_organ(self, organ: Organ) -> TumorSynthesizer:
        """Return a synthesizer of another organ with the same networks."""
        other = copy(self)
        other.organ = organ
        return other

    def with_masks(self, masks: Mapping[MaskRecord, np.ndarray]) -> TumorSynthesizer:
        """Return a synthesizer with the same networks that knows the masks which records take their shapes from."""
        other = copy(self)
        other.sources = self.sources.with_masks(masks)
        return other

    @property
    def device(self) -> torch.device:
        """Device of the networks, on which ``apply`` takes its CT."""
        return next((texture.device for texture in self.diffusion.values()), self._device)

    def to(self, device: torch.device | str) -> TumorSynthesizer:
        """Move the networks to a device and return self."""
        self._device = torch.device(device)
        for texture in self.diffusion.values():
            texture.to(device)
        return self

    @property
    def window(self) -> IntensityWindow:
        """HU window of the networks, inside which diffusion tumors are; without any, one that shows the organ."""
        usual = IntensityWindow()
        middle_hu = sum(self.organ.mean_hu or (0.0, 0.0)) / 2
        if not usual.low_hu < middle_hu < usual.high_hu:  # lung and bone
            usual = _ALL_HU
        return next((texture.window for texture in self.diffusion.values()), usual)

    def draw(
        self,
        organ_mask_XYZ: np.ndarray | Tensor,
        tumors: TumorSpec | Sequence[TumorSpec],
        *,
        seed: int,
        keys: tuple[Key, ...] = (),
        ct_hu_XYZ: np.ndarray | Tensor | None = None,
        affine: np.ndarray | None = None,
        open_border: bool = True,
    ) -> tuple[TumorRecord, ...]:
        """Draw tumors for one organ, without changing a CT.

        Args:
            organ_mask_XYZ: Organ in model space; any nonzero voxel counts.
            tumors: What is wanted.
            seed: With ``keys``, decides everything; the first tumors do not depend on how many follow.
            keys: For instance ``("epoch", 3, "sample", 17)``.
            ct_hu_XYZ: CT of the same shape, for hand-crafted and copied tumors and clearance from vessels.
            affine: (4, 4), voxels of the mask to world mm, for ``center_mm``; by default the spacing alone.
            open_border: Whether tumors may be cut by the array's border, as in a training crop.

        Returns:
            The records; fewer than asked for if the organ has no room for more.

        Raises:
            SynthesisError: The mask is empty, none of the tumors has room, or the CT is needed and not given.
        """
        specs = (tumors,) if isinstance(tumors, TumorSpec) else tuple(tumors)
        host = Host(
            _array(organ_mask_XYZ),
            organ=self.organ,
            spacing_mm=self.spacing_mm,
            ct_hu_XYZ=None if ct_hu_XYZ is None else _array(ct_hu_XYZ),
            affine=affine,
            open_border=open_border,
        )
        drawn = draw_tumors(host, specs, seed=seed, keys=keys, sources=self.sources)
        if drawn.shortfalls and not drawn.records:
            raise no_room(self.organ, specs)
        return drawn.records

    @torch.no_grad()
    def apply(
        self,
        ct_hu_B1XYZ: Tensor,
        organ_mask_B1XYZ: Tensor,
        records: Sequence[Sequence[TumorRecord]],
        *,
        patch_per_tumor: bool = False,
        tumors_B1XYZ: Tensor | None = None,
        minimum_change_hu: float = 0.0,
    ) -> Synthesis:
        """Apply records to a batch of CT; the same arguments give the same tumors.

        Args:
            ct_hu_B1XYZ: CT in HU, model space; not modified.
            organ_mask_B1XYZ: Organ on the same device; any nonzero voxel counts.
            records: Tumors of every element, possibly none, as ``draw`` returned them for its organ mask.
            patch_per_tumor: Give every tumor a patch of its own, even if the CT has the size of one patch.
            tumors_B1XYZ: Tumors that are there already and cut others; None for none.
            minimum_change_hu: A tumor that changes the mean HU inside its label by less, up or down, is left out with
                its label and record; mass effect and capsule do not count.

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
            earlier = None if tumors_B1XYZ is None else tumors_B1XYZ[element, 0].cpu().numpy()
            tumors += self._place(element, organ[element, 0].cpu().numpy(), earlier, drawn, lesions[element, 0].numpy())
        lesions = lesions.to(ct.device)
        whole = {group: shape == texture.patch and not patch_per_tumor for group, texture in self.diffusion.items()}
        # Nothing is computed far from all tumors, unless the networks' whole patch is taken.
        decoded = self.organ.blend == "decoded" and any(whole.values())
        near = Box.whole(shape) if decoded else Box.joined([tumor.halo_box(shape) for tumor in tumors])
        blend = Blend.empty(ct, near, lesions, minimum_change_hu)
        for group, texture in self.diffusion.items():
            own = [t for t in tumors if t.record.generator == "diffusion" and t.record.size_group == group]
            patches = plan_patches(own, shape, texture.patch, texture.multiple, together=whole[group])
            for patch, texture_hu in _textures(texture, patches, ct, lesions):
                self._blend(patch, texture_hu, texture.window, ct, blend)
        for tumor in tumors:
            if tumor.record.generator != "diffusion":
                self._blend_alone(tumor, ct, organ, blend)
        if blend.faint:
            # Tumors cut each other, and networks see them together: the others are made again, without the faint ones.
            others = [tumor for tumor in tumors if tumor not in blend.faint]
            kept = [[tumor.record for tumor in others if tumor.element == element] for element in range(len(ct))]
            return self.apply(ct, organ, kept, patch_per_tumor=patch_per_tumor, tumors_B1XYZ=tumors_B1XYZ)
        made_hu, halo = blend.applied_to(ct)
        made = MutableBatch(made_hu, organ, lesions, halo)
        index = (..., *Box.joined([near, apply_effects(made, tumors)]).slices)
        labels = made.organ.to(torch.uint8) * ORGAN
        labels[index][made.lesions[index] > 0] = TUMOR
        change = torch.zeros_like(ct)
        change[index] = torch.where(made.halo[index], made.ct_hu[index] - ct[index], change[index])
        return Synthesis(made.ct_hu, labels, made.lesions, made.halo, change, tuple(map(tuple, records)))

    def _place(
        self,
        element: int,
        organ_XYZ: np.ndarray,
        tumors_XYZ: np.ndarray | None,
        drawn: Sequence[TumorRecord],
        lesions_XYZ: np.ndarray,
    ) -> Iterator[PlacedTumor]:
        """Write the tumors of one element into its lesion map."""
        if not drawn:
            return
        host = Host(organ_XYZ, organ=self.organ, spacing_mm=self.spacing_mm, tumors_XYZ=tumors_XYZ)
        placement = Placement(host)
        for instance, record in enumerate(drawn, start=1):
            self._check_record(record, triple(organ_XYZ.shape))
            whole = self.sources.shape(record)
            box, mask = placement.cut(
                whole,
                record.center_voxel,
                may_leave=record.may_leave_organ,
                may_overlap=record.may_overlap,
            )
            if not mask.any():
                raise SynthesisError(
                    f"Tumor {instance} at voxel {record.center_voxel} has no room in the organ mask: "
                    "apply records to the mask they were drawn for."
                )
            placement.add(box, mask)
            lesions_XYZ[box.slices][mask] = instance
            yield PlacedTumor(element, instance, record, Box.around(mask).shifted(box.start), triple(whole.shape))

    def _check_record(self, record: TumorRecord, shape: Voxel) -> None:
        if record.spacing_mm != self.spacing_mm:
            raise SynthesisError(
                f"A record at {record.spacing_mm} mm cannot be applied at {self.spacing_mm} mm: "
                "use the model it was drawn for."
            )
        if record.generator == "diffusion" and record.size_group not in self.diffusion:
            raise SynthesisError(
                f"A diffusion tumor of {2 * record.radius_mm:g} mm needs the {record.size_group} model, which is not "
                "given: give it, or ask for other tumors."
            )
        if not all(0 <= index < size for index, size in zip(record.center_voxel, shape, strict=True)):
            raise SynthesisError(
                f"A record's center {record.center_voxel} lies outside the CT of shape {shape}: "
                "apply records to the grid they were drawn for."
            )

    def _blend(
        self,
        patch: Patch,
        texture_hu: Tensor,
        window: IntensityWindow,
        ct: Tensor,
        blend: Blend,
    ) -> None:
        """Add the tumors of one patch."""
        shape = triple(ct.shape[2:])
        if self.organ.blend == "decoded" and patch.whole:
            # The published recipe for training crops: the decoded patch as it is.
            change_hu = texture_hu - ct[patch.element, 0].clamp(window.low_hu, window.high_hu)
            for tumor in patch.tumors:
                blend.judge(tumor, patch.box, change_hu)
            blend.change_hu[patch.element, 0] = change_hu
            blend.weight[patch.element, 0] = 1.0
            return
        for tumor in patch.tumors:
            box = tumor.halo_box(shape)
            index = (patch.element, 0, *box.slices)
            own = blurred_weight(blend.lesions[index] == tumor.instance, tumor.record.blur_sigma_voxels)
            # The change is made inside the window: what bone and air have beyond it stays.
            healthy = ct[index].clamp(window.low_hu, window.high_hu)
            inside = tuple(slice(a - o, b - o) for a, b, o in zip(box.start, box.stop, patch.box.start, strict=True))
            blend.add(tumor, box, blend_change(healthy, texture_hu[inside], own), own)

    def _blend_alone(self, tumor: PlacedTumor, ct: Tensor, organ: Tensor, blend: Blend) -> None:
        """Add one hand-crafted or copied tumor, which no network makes."""
        record = tumor.record
        # Made for the whole halo and then cut, so that the border of the array does not change it.
        whole, box = tumor.whole_halo_box, tumor.halo_box(triple(ct.shape[2:]))
        index = (tumor.element, 0, *box.slices)
        healthy = ct[index]
        if record.texture is None:
            texture_hu = torch.from_numpy(self.sources.texture(record, whole))
        else:
            texture_hu = handcrafted_texture(
                record.texture, whole.shape, spacing_mm=record.spacing_mm, seed=record.texture_seed
            )
            if record.texture.host_noise_mm > 0:
                healthy = _without_noise(tumor, box, ct, organ)
        inside = box.relative_to(whole).slices
        own = blurred_weight(blend.lesions[index] == tumor.instance, record.blur_sigma_voxels)
        # Hu et al. 2023, eq. (4), of the CT as it is: no window.
        blend.add(tumor, box, blend_change(healthy, texture_hu.to(ct.device)[inside], own), own)


def no_room(organ: Organ, tumors: Sequence[TumorSpec]) -> SynthesisError:
    """Return the error that no tumor has room."""
    sizes = " or ".join(sorted({repr(group) for spec in tumors for group in spec.weights}))
    apart = "" if all(spec.vessel_clearance_mm is None for spec in tumors) else ", less clearance from vessels"
    return SynthesisError(
        f"The {organ.name} has no room for a tumor of size {sizes}: choose a smaller size{apart} "
        "or a mask with more of the organ."
    )


def _array(values: np.ndarray | Tensor) -> np.ndarray:
    return values.cpu().numpy() if isinstance(values, Tensor) else values


def _textures(
    texture: DiffusionTexture, patches: list[Patch], ct: Tensor, lesions: Tensor
) -> Iterator[tuple[Patch, Tensor]]:
    """Run the networks over patches of one size, as many together as they take at once; patches keep their order."""
    for group in _together(patches, texture.patches_at_once):
        ct_B1XYZ = torch.stack([take_patch(ct[patch.element, 0], patch.box)[None] for patch in group])
        masks = []
        for patch in group:
            local = take_patch(lesions[patch.element, 0], patch.box)
            numbers = torch.tensor([tumor.instance for tumor in patch.tumors], device=local.device)
            masks.append(torch.isin(local, numbers.to(local.dtype))[None])
        made = texture.make(ct_B1XYZ, torch.stack(masks), [patch.seed for patch in group])
        yield from zip(group, made[:, 0], strict=True)


def _together(patches: list[Patch], most: int) -> Iterator[list[Patch]]:
    for _, members in groupby(patches, key=lambda patch: patch.box.shape):
        while group := list(islice(members, most)):
            yield group


def _without_noise(tumor: PlacedTumor, box: Box, ct: Tensor, organ: Tensor) -> Tensor:
    """Return a box of the CT without its noise: what replaces the rest leaves the noise where it is."""
    assert tumor.record.texture is not None
    sigma = [tumor.record.texture.host_noise_mm / step for step in tumor.record.spacing_mm]
    seen = box.padded([blur_radius(s) for s in sigma]).clipped(ct.shape[2:])
    index = (tumor.element, 0, *seen.slices)
    return smoothed_tissue(ct[index], organ[index], sigma)[box.relative_to(seen).slices]
