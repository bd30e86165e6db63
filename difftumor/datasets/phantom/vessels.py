"""Aorta, vena cava, portal system, and the two trees of veins inside the liver."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from difftumor.datasets.phantom.person import Person
from difftumor.datasets.phantom.solids import Solid, Space, tube
from difftumor.datasets.phantom.volume import LIVER, PhantomVolume

PORTA = (38.0, 12.0, 26.0)
CONFLUENCE = (13.0, 10.0, 4.0)
CAVAL_OUTLET = (20.0, -20.0, 84.0)


@dataclass(frozen=True)
class Segment:
    """A piece of a vessel: from ``start`` to ``end`` (mm) with a radius (mm) at each."""

    start: np.ndarray
    end: np.ndarray
    radius_start: float
    radius_end: float


def paint_great_vessels(volume: PhantomVolume, person: Person) -> None:
    """Paint the aorta, left of the midline, and the inferior vena cava, right of it, with the renal vessels."""
    space = volume.space
    aorta = tube(space, [(-6, -9, -95), (-7, -8, 0), (-9, -12, 80), (-20, -20, 260)], (9.0, 10.0, 11.5, 12.5))
    cava = tube(space, [(19, -12, -95), (20, -10, 0), (21, -14, 60), (20, -16, 105)], (10.0, 11.5, 12.5, 12.5))
    iliac = [tube(space, [(m, -10, -92), (s * 48, -2, -200)], (r, r)) for m, s, r in ((-6, -1, 7.0), (19, 1, 7.5))]
    for side, height in ((1.0, -24.0), (-1.0, -10.0)):
        vein = tube(
            space, [(side * 46, -30, height), (side * 25, -8, height + 6), (14, -2, height + 8)], (4.5, 4.5, 5.0)
        )
        volume.paint(vein, person.hu("vena_cava"))
    volume.paint(cava, person.hu("vena_cava"))
    volume.paint(aorta, person.hu("aorta"))
    for vessel, tissue in zip(iliac, ("aorta", "vena_cava"), strict=True):
        volume.paint(vessel, person.hu(tissue))
    mesenteric_artery = tube(space, [(-6, 0, 4), (-3, 10, -8), (0, 14, -60)], (3.5, 3.5, 3.0))
    volume.paint(mesenteric_artery, person.hu("aorta"))


def paint_portal_system(volume: PhantomVolume, person: Person) -> None:
    """Paint splenic, mesenteric and portal vein up to the liver; their voxels belong to no organ but the liver."""
    space = volume.space
    splenic = tube(
        space, [(-74, -24, 38), (-46, -8, 23), (-14, 11, 12), CONFLUENCE], (4.0, 4.0, 4.5, 5.5), smooth_mm=3.0
    )
    mesenteric = tube(space, [(14, 18, -90), (13, 17, -30), CONFLUENCE], (4.5, 5.5, 6.0))
    portal = tube(space, [CONFLUENCE, (24, 8, 14), PORTA], (6.5, 6.5, 6.5))
    for vein in (splenic, mesenteric, portal):
        volume.paint(vein, person.hu("portal_vein"), label=0, keep=LIVER)


def paint_liver_veins(volume: PhantomVolume, person: Person, liver: Solid) -> None:
    """Paint the branches of the portal vein and the hepatic veins; they stay part of the liver's label."""
    draw = person.generator("liver veins")
    trees = {
        "portal_vein": (PORTA, [(1.0, 0.0, 0.25), (0.2, -0.3, 1.0), (-0.7, 0.8, 0.55)], 5.6, 5),
        "hepatic_vein": (CAVAL_OUTLET, [(1.0, -0.1, -0.5), (0.6, 0.9, -0.35), (-0.5, 1.0, -0.3)], 5.0, 4),
    }
    for tissue, (root, directions, radius, generations) in trees.items():
        segments: list[Segment] = []
        for direction in directions:
            _grow(segments, np.asarray(root), np.asarray(direction), radius, generations, draw)
        veins = _nearest(volume.space, liver, segments)
        # A thin cover of parenchyma keeps the branches from showing at the surface of the liver.
        volume.paint(veins.inside(liver.distance + np.float32(3.0)), person.hu(tissue))


def _grow(
    segments: list[Segment],
    start: np.ndarray,
    direction: np.ndarray,
    radius: float,
    generations: int,
    draw: np.random.Generator,
) -> None:
    """Append a branch and, from its end, two thinner ones that obey Murray's law (cubes of the radii add up)."""
    direction = direction / np.linalg.norm(direction)
    length = radius * draw.uniform(5.0, 7.5)
    end = start + length * direction
    segments.append(Segment(start, end, radius, 0.92 * radius))
    if generations <= 1:
        return
    share = draw.uniform(0.35, 0.65)
    across = np.cross(direction, draw.normal(size=3))
    across /= np.linalg.norm(across)
    for part, side in ((share, 1.0), (1.0 - share, -1.0)):
        # The thinner branch turns away more.
        turn = np.deg2rad(draw.uniform(55.0, 85.0)) * (1.0 - part)
        child = np.cos(turn) * direction + side * np.sin(turn) * across + 0.15 * draw.normal(size=3)
        _grow(segments, end, child, 0.95 * radius * part ** (1.0 / 3.0), generations - 1, draw)


def _nearest(space: Space, liver: Solid, segments: Sequence[Segment]) -> Solid:
    """Return the union of all segments on the liver's box; each is computed only near itself."""
    distance = np.full(liver.distance.shape, 50.0, dtype=np.float32)
    union = Solid(liver.box, distance)
    for segment in segments:
        piece = tube(space, [segment.start, segment.end], [segment.radius_start, segment.radius_end])
        union.include(piece)
    return union
