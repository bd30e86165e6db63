"""Drawing: all random decisions about one tumor, made before anything is applied."""

from dataclasses import replace

import numpy as np

from difftumor.errors import SynthesisError
from difftumor.organs import Organ
from difftumor.seeding import Key, derive_seed, numpy_generator
from difftumor.synthesis.placement import Room
from difftumor.synthesis.records import SIZES, Triple, TumorRecord, sizes_of
from difftumor.synthesis.shapes import tumor_shape

# Chance that a tumor which may leave its organ does (published: half of the medium and large kidney tumors).
LEAVING_CHANCE = 0.5
# Published as U(0, 4) voxels of 1 mm; in mm a rim stays as soft at any spacing.
LARGEST_BLUR_MM = 4.0


def draw_tumors(
    organ_mask_XYZ: np.ndarray,
    *,
    organ: Organ,
    texture: str,
    size: str,
    count: int,
    spacing_mm: Triple,
    seed: int,
    keys: tuple[Key, ...] = (),
    affine: np.ndarray | None = None,
    open_border: bool = True,
) -> tuple[TumorRecord, ...]:
    """Draw tumors for one organ; no network is needed. See ``TumorSynthesizer.draw``, as for what it raises.

    Args:
        organ_mask_XYZ: See there, as for all that follow but these.
        organ: Rules of placement.
        texture: Name of the generator that the tumors are drawn for.
        size: See there.
        count: See there.
        spacing_mm: Voxel size of the mask.
        seed: See there.
        keys: See there.
        affine: See there.
        open_border: See there.
    """
    sizes = sizes_of(size)
    if count < 1:
        return ()
    room = Room(organ_mask_XYZ, spacing_mm, erosion_voxels=organ.erosion_voxels, open_border=open_border)
    to_mm = np.diag([*spacing_mm, 1.0]) if affine is None else np.asarray(affine, dtype=np.float64)
    drawn = (
        draw_tumor(
            room,
            organ=organ,
            texture=texture,
            sizes=sizes,
            spacing_mm=spacing_mm,
            to_mm=to_mm,
            seed=seed,
            keys=(*keys, "tumor", number),
        )
        for number in range(count)
    )
    records = tuple(record for record in drawn if record is not None)
    if not records:
        raise SynthesisError(
            f"The {organ.name} has no room for a tumor of size {size!r}: choose a smaller size "
            "or a mask with more of the organ."
        )
    return records


def draw_tumor(
    room: Room,
    *,
    organ: Organ,
    texture: str,
    sizes: tuple[str, ...],
    spacing_mm: Triple,
    to_mm: np.ndarray,
    seed: int,
    keys: tuple[Key, ...],
) -> TumorRecord | None:
    """Draw one tumor and let it take its place in the room.

    Args:
        room: Where there is place; changed.
        organ: Rules of placement.
        texture: Name of the generator that the tumor is drawn for.
        sizes: Size classes to choose from, with equal chance.
        spacing_mm: Voxel size of the room.
        to_mm: (4, 4), voxels of the room to world mm.
        seed: With ``keys``, decides everything.
        keys: Different for every tumor.

    Returns:
        The record, or None where there is no room for it.
    """
    generator = numpy_generator(seed, *keys)
    size = SIZES[sizes[int(generator.integers(len(sizes)))]]
    low, high = size.half_axes
    a, b, c = (float(size.radius_mm * share) for share in generator.uniform(low, high, size=3))
    # Drawn whether needed or not, so that one decision never shifts the numbers of the next.
    leaves = bool(generator.random() < LEAVING_CHANCE)
    record = TumorRecord(
        generator=texture,
        organ=organ.name,
        size=size.name,
        radius_mm=size.radius_mm,
        half_axes_mm=(a, b, c),
        deformation_sigma_mm=size.draw_deformation(generator),
        shape_seed=derive_seed(seed, *keys, "shape"),
        center_voxel=(0, 0, 0),
        center_mm=(0.0, 0.0, 0.0),
        may_leave_organ=leaves and size.name in organ.may_leave_organ,
        texture_seed=derive_seed(seed, *keys, "texture"),
        blur_sigma_voxels=float(generator.uniform(0.0, LARGEST_BLUR_MM) / np.prod(spacing_mm) ** (1 / 3)),
        spacing_mm=spacing_mm,
    )
    shape = tumor_shape(record)
    may_leave, centered = record.may_leave_organ, size.name in organ.centered
    center = room.find_center(shape, max(a, b, c), generator, may_leave=may_leave, centered=centered)
    if center is None:
        return None
    room.take(*room.cut(shape, center, may_leave=may_leave))
    x, y, z = (float(value) for value in (to_mm @ [*center, 1.0])[:3])
    return replace(record, center_voxel=center, center_mm=(x, y, z))
