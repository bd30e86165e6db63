"""The frame of the trunk: skin, fat, muscle, ribs, spine, pelvis and lungs."""

from dataclasses import dataclass

import numpy as np

from difftumor.datasets.phantom.person import Person
from difftumor.datasets.phantom.solids import Array, Solid, Space, ellipsoid, ellipsoid_distance, smooth_minimum
from difftumor.datasets.phantom.volume import PhantomVolume

# Reference anatomy: origin in the middle of the trunk at the level of L1, x to the right, y forward, z up, mm.
BODY_HALF_MM = (146.0, 105.0)
WALL_MM = 11.0
SPINE_Y_MM = -40.0
VERTEBRA_MM = 34.0
RIB_PERIOD_MM = 30.0
RIB_DROP_MM = 26.0  # per radian around the trunk
RIB_LOWEST_MM = -12.0


@dataclass(frozen=True, eq=False)
class Frame:
    """Signed distances on the whole grid, mm.

    Args:
        cavity: Room inside the muscle wall.
        below_diaphragm: Everything under the diaphragm.
    """

    cavity: Array
    below_diaphragm: Array

    def abdomen(self, solid: Solid, *, gap_mm: float, smooth_mm: float = 6.0) -> Solid:
        """Return the part of a solid inside the abdominal cavity, at least ``gap_mm`` from its walls."""
        walls = np.maximum(self.cavity[solid.box], self.below_diaphragm[solid.box]) + np.float32(gap_mm)
        return solid.inside(walls, smooth_mm=smooth_mm)


def paint_frame(volume: PhantomVolume, person: Person) -> Frame:
    """Paint the trunk without its organs, and return where the organs may go."""
    space, draw = volume.space, person.generator("frame")
    everywhere = space.everything
    body = _trunk(space)
    fat_mm = draw.uniform(10.0, 24.0) + 2.5 * person.bumps("fat", wavelength_mm=70.0).sample(space.axes_mm)
    # More fat in front and at the flanks than over the ribs and the back.
    y = space.coordinates[1]
    wall = body + np.clip(fat_mm + np.float32(0.06) * y, 4.0, None)
    back = _back_muscles(space)
    cavity = -smooth_minimum(-(wall + np.float32(WALL_MM)), back, 8.0)
    below = _diaphragm(space, person)

    volume.paint(Solid(everywhere, body), person.hu("skin"))
    volume.paint(Solid(everywhere, body + np.float32(2.0)), person.hu("fat"))
    volume.paint(Solid(everywhere, wall), person.hu("muscle"))
    volume.paint(Solid(everywhere, cavity), person.hu("mesentery"))
    _paint_chest(volume, person, cavity, below)
    _paint_muscles(volume, person)
    _paint_ribs(volume, person, wall)
    _paint_pelvis(volume, person)
    _paint_spine(volume, person)
    return Frame(cavity, below)


def _trunk(space: Space) -> Array:
    """Distance to the skin: a superellipse, flatter than an ellipse, with a waist."""
    x, y, z = space.coordinates
    waist = np.float32(1.0) - np.float32(0.05) * np.exp(-np.square((z + 60.0) * np.float32(1 / 55.0)))
    u, v = np.abs(x) / (np.float32(BODY_HALF_MM[0]) * waist), np.abs(y) * np.float32(1.0 / BODY_HALF_MM[1])
    # |u|^2.5 as u² sqrt(u): much faster than a general power.
    root_u, root_v = np.sqrt(u), np.sqrt(v)
    total = u * u * root_u + v * v * root_v + np.float32(1e-6)
    level = total ** np.float32(0.4)
    slope = (
        level
        / total
        * np.hypot(u * root_u * np.float32(1 / BODY_HALF_MM[0]), v * root_v * np.float32(1 / BODY_HALF_MM[1]))
    )
    return (level - 1.0) / np.maximum(slope, np.float32(1e-3))


def _back_muscles(space: Space) -> Array:
    """Distance to the muscles on both sides of the spine."""
    x, y, z = space.coordinates
    return ellipsoid_distance((np.abs(x), y, z), (30.0, SPINE_Y_MM - 36.0, 0.0), (30.0, 22.0, np.inf))


def _diaphragm(space: Space, person: Person) -> Array:
    """Distance below the two domes of the diaphragm (negative below)."""
    x, y, z = space.coordinates
    right, left = person.generator("diaphragm").normal((98.0, 86.0), 4.0)
    forward = np.square(y - np.float32(5.0))
    over_right = np.float32(right) - (np.square(x - 62.0) + forward) * np.float32(1 / 170.0)
    over_left = np.float32(left) - (np.square(x + 62.0) + forward) * np.float32(1 / 170.0)
    return (z - np.maximum(over_right, over_left)) * np.float32(0.85)


def _paint_chest(volume: PhantomVolume, person: Person, cavity: Array, below: Array) -> None:
    space = volume.space
    x, y, z = space.coordinates
    # Between the lungs: fat, gullet and vessels; wider in front, where the heart lies.
    mediastinum = ellipsoid_distance((x, y, z), (-4.0, -5.0, 0.0), (34.0, 66.0, np.inf))
    lungs = np.maximum(np.maximum(cavity + 1.0, 3.0 - below), -mediastinum)
    texture = np.float32(25.0) * person.bumps("lung", wavelength_mm=14.0).sample(space.axes_mm)
    volume.paint(Solid(space.everything, lungs), np.float32(person.hu("lung")) + texture)
    heart = ellipsoid(space, person.place("heart", (-28.0, 28.0, 138.0)), (58.0, 46.0, 48.0))
    heart = heart.inside(np.maximum(cavity, 2.0 - below)[heart.box], smooth_mm=4.0)
    volume.paint(heart, person.hu("muscle") + 30.0)
    volume.paint(heart.grown(-9.0), person.hu("heart"))


def _paint_muscles(volume: PhantomVolume, person: Person) -> None:
    space = volume.space
    for side in (-1.0, 1.0):
        # The psoas starts at the first lumbar vertebra and thickens downward.
        box = space.box((min(side * 18, side * 70), -70.0, -260.0), (max(side * 18, side * 70), -5.0, 10.0))
        x, y, z = space.at(box)
        thick = np.clip((np.float32(8.0) - z) * np.float32(1 / 90.0), 0.0, 1.0)
        radius = np.float32(4.0) + np.float32(18.0) * thick
        middle = side * (np.float32(27.0) + np.float32(10.0) * thick)
        distance = np.hypot(x - middle, (y + np.float32(42.0)) * np.float32(0.85)) - radius
        volume.paint(Solid(box, np.maximum(distance, z - 8.0)), person.hu("muscle"))


def _paint_ribs(volume: PhantomVolume, person: Person, wall: Array) -> None:
    space = volume.space
    x, y, z = space.coordinates
    depth = wall + np.float32(0.5 * WALL_MM)
    shell = np.abs(depth) < 8.0
    around = np.abs(np.arctan2(x[shell], -y[shell]))
    level = (z[shell] + np.float32(RIB_DROP_MM) * around - np.float32(RIB_LOWEST_MM)) * np.float32(1 / RIB_PERIOD_MM)
    number = np.floor(level)
    across = (level - number - np.float32(0.5)) * np.float32(RIB_PERIOD_MM)
    # The lowest ribs float: they end at the flank; higher ones reach the front.
    end = np.clip(np.float32(1.15) + np.float32(0.35) * number, 0.0, 2.5)
    near = (np.hypot(depth[shell] * np.float32(1 / 3.6), across * np.float32(1 / 6.5)) - 1.0) * np.float32(4.4)
    near = np.maximum(near, (around - end) * 90.0)
    near = np.where(number < 0, np.float32(50.0), np.maximum(near, (np.float32(0.32) - around) * 90.0))
    distance = np.full(space.shape, 50.0, dtype=np.float32)
    distance[shell] = near
    _paint_bone(volume, person, Solid(space.everything, distance), shell_mm=1.6)


def _paint_pelvis(volume: PhantomVolume, person: Person) -> None:
    space = volume.space
    for side in (-1.0, 1.0):
        wing = ellipsoid(space, (side * 62.0, -8.0, -185.0), (58.0, 62.0, 74.0))
        x, y, _ = space.at(wing.box)
        plate = np.maximum(np.abs(wing.distance + 5.0) - 5.0, np.float32(70.0) - np.abs(x) - np.float32(0.35) * y)
        _paint_bone(volume, person, Solid(wing.box, plate), shell_mm=2.0)


def _paint_spine(volume: PhantomVolume, person: Person) -> None:
    space = volume.space
    box = space.box((-46.0, -96.0, -300.0), (46.0, -14.0, 300.0))
    x, y, z = space.at(box)
    shift = person.generator("spine").uniform(-8.0, 8.0)
    phase = np.abs(np.mod(z - np.float32(shift), np.float32(VERTEBRA_MM)) - np.float32(VERTEBRA_MM / 2))
    points = (x, y, z)
    column = ellipsoid_distance(points, (0.0, SPINE_Y_MM, 0.0), (23.0, 17.0, np.inf))
    # Vertebrae are slimmest at mid-height; the discs lie between them.
    vertebra = smooth_minimum(-(column + 2.5 - np.float32(0.013) * np.square(phase)), np.float32(13.0) - phase, 4.0)
    canal = ellipsoid_distance(points, (0.0, SPINE_Y_MM - 26.0, 0.0), (11.0, 8.5, np.inf))
    arch = np.maximum(canal - 5.5, phase - 12.0)
    spinous = np.maximum(ellipsoid_distance(points, (0.0, SPINE_Y_MM - 42.0, 0.0), (3.6, 13.0, np.inf)), phase - 9.0)
    lateral = np.hypot((y - np.float32(SPINE_Y_MM - 24.0)) * 0.9, phase - 2.0) - np.float32(4.5)
    lateral = np.maximum(lateral, np.abs(x) - 40.0)
    bone = smooth_minimum(smooth_minimum(arch, spinous, 4.0), lateral, 3.0)
    volume.paint(Solid(box, column), person.hu("disc"))
    _paint_bone(volume, person, Solid(box, bone), shell_mm=2.0)
    _paint_bone(volume, person, Solid(box, -vertebra), shell_mm=1.8)
    volume.paint(Solid(box, canal), person.hu("cord"))


def _paint_bone(volume: PhantomVolume, person: Person, bone: Solid, *, shell_mm: float) -> None:
    volume.paint(bone, person.hu("cortical_bone"))
    volume.paint(bone.grown(-shell_mm), person.hu("marrow"))
