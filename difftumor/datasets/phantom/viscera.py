"""The organs of the upper abdomen, painted from back to front so that none overlaps another."""

from collections.abc import Sequence

import numpy as np

from difftumor.datasets.phantom.frame import Frame
from difftumor.datasets.phantom.person import Person
from difftumor.datasets.phantom.solids import Solid, ellipsoid, ellipsoid_distance, tube
from difftumor.datasets.phantom.volume import KIDNEY_LEFT, KIDNEY_RIGHT, LIVER, PANCREAS, SPLEEN, PhantomVolume


def paint_bowel(volume: PhantomVolume, person: Person, frame: Frame) -> None:
    """Paint loops of small bowel, the colon, the stomach and the duodenum."""
    space = volume.space
    box = space.box((-110.0, -20.0, -250.0), (110.0, 80.0, 0.0))
    x, y, z = space.at(box)
    # Two random fields vanish together along winding curves; the tubes around them look like loops of bowel.
    folds = [space.field(box, person.bumps(f"bowel {number}", wavelength_mm=30.0)) for number in (1, 2)]
    loops = frame.abdomen(Solid(box, (np.hypot(*folds) - np.float32(1.0)) * np.float32(14.0)), gap_mm=7.0)
    loops = loops.inside(np.maximum(z + 28.0, ellipsoid_distance((x, y, z), (0, -20, 0), (50, 42, np.inf)) * -1.0))
    volume.paint(loops, person.hu("bowel_wall"))
    volume.paint(loops.grown(-3.0), person.hu("bowel") - 25.0)
    _paint_colon(volume, person, frame)

    stomach = [(-58, 2, 74), (-62, 26, 46), (-46, 48, 22), (-12, 54, 4), (16, 44, 0)]
    points = np.asarray(stomach) + person.place("stomach", (0.0, 0.0, 0.0), 3.0)
    bag = frame.abdomen(tube(space, points, (29.0, 28.0, 22.0, 16.0, 11.0), smooth_mm=10.0), gap_mm=3.0)
    volume.paint(bag, person.hu("bowel_wall"))
    volume.paint(bag.grown(-4.0), person.hu("fluid") + 6.0)
    # Air rises to the front of a patient who lies on his back.
    front = person.generator("stomach air").uniform(44.0, 60.0)
    volume.paint(bag.grown(-5.0).inside(np.float32(front) - space.at(bag.box)[1]), -900.0)
    duodenum = tube(space, [(20, 44, -2), (46, 28, -6), (52, 8, -26), (36, 4, -50), (2, 8, -54)], (11, 12, 12, 12, 11))
    volume.paint(duodenum, person.hu("bowel_wall"))
    volume.paint(duodenum.grown(-4.0), person.hu("fluid") + 15.0)


def _paint_colon(volume: PhantomVolume, person: Person, frame: Frame) -> None:
    space = volume.space
    parts = {
        "ascending": ([(86, -8, -190), (90, -12, -110), (88, 10, -62)], 24.0),
        "transverse": ([(88, 10, -62), (45, 52, -58), (-20, 58, -66), (-78, 30, -20)], 19.0),
        "descending": ([(-78, 30, -20), (-94, -18, -60), (-92, -18, -190)], 16.0),
    }
    for name, (points, radius) in parts.items():
        corners = np.asarray(points, dtype=float)
        gut = tube(space, corners, [radius] * len(corners), smooth_mm=12.0)
        # Haustra: the wall bulges and narrows along its way.
        bulges = space.field(gut.box, person.bumps(name, wavelength_mm=22.0)) * np.float32(2.5)
        gut = frame.abdomen(gut.grown(bulges), gap_mm=4.0)
        content = space.field(gut.box, person.bumps(f"{name} content", wavelength_mm=11.0))
        filling = np.where(content > 0.7, np.float32(-750.0), np.float32(35.0) + np.float32(25.0) * content)
        volume.paint(gut, person.hu("bowel_wall"))
        volume.paint(gut.grown(-3.5), filling)


def paint_kidneys(volume: PhantomVolume, person: Person) -> tuple[Solid, Solid]:
    """Paint both kidneys: cortex, pyramids of medulla, and the sinus that opens toward the spine.

    Returns:
        The right and the left kidney.
    """
    kidneys = []
    for label, side, height in ((KIDNEY_RIGHT, 1.0, -24.0), (KIDNEY_LEFT, -1.0, -10.0)):
        name = f"kidney {label}"
        center = person.place(name, (side * 63.0, -36.0, height), 3.5)
        # The upper pole lies closer to the spine and further back than the lower one.
        axes = person.tilt(name, (-8.0, side * -12.0, side * 25.0), 5.0)
        half = person.size(name, (25.0, 29.0, 54.0))
        kidney = ellipsoid(volume.space, center, half, axes)
        kidney = kidney.grown(volume.space.field(kidney.box, person.bumps(name, wavelength_mm=24.0)) * np.float32(1.0))
        points = volume.space.at(kidney.box)
        hilum = center - np.asarray((side * 23.0, -4.0, 0.0))
        sinus = Solid(kidney.box, ellipsoid_distance(points, hilum, (17.0, 12.0, 21.0), axes))
        kidney = kidney.without(sinus, smooth_mm=5.0).main_part()
        # Pyramids: the inner part, where a field that varies around the sinus is high.
        columns = volume.space.field(kidney.box, person.bumps(f"{name} medulla", wavelength_mm=11.0))
        medulla = np.maximum(kidney.distance + 6.5, (np.float32(-0.1) - columns) * 7.0)
        volume.paint(kidney, person.hu("renal_cortex"), label=label)
        volume.paint(Solid(kidney.box, medulla), person.hu("renal_medulla"))
        drain = hilum + np.asarray((side * 4.0, 0.0, 0.0))
        pelvis = Solid(kidney.box, ellipsoid_distance(points, drain, (8.0, 6.0, 11.0), axes))
        volume.paint(pelvis, person.hu("fluid") + 10.0)
        kidneys.append(kidney)
    return kidneys[0], kidneys[1]


def paint_spleen(volume: PhantomVolume, person: Person, frame: Frame, *, neighbors: Sequence[Solid]) -> Solid:
    """Paint the spleen, hollow on the side of stomach and kidney."""
    center = person.place("spleen", (-91.0, -30.0, 44.0))
    axes = person.tilt("spleen", (20.0, 10.0, -25.0))
    spleen = ellipsoid(volume.space, center, person.size("spleen", (31.0, 49.0, 55.0), 0.08), axes)
    points = volume.space.at(spleen.box)
    hollow = ellipsoid_distance(points, center + np.asarray((44.0, 10.0, -4.0)), (36.0, 40.0, 50.0))
    spleen = frame.abdomen(spleen.without(Solid(spleen.box, hollow), smooth_mm=8.0), gap_mm=3.0)
    spleen = _beside(spleen, neighbors).main_part()
    volume.paint(spleen, person.hu("spleen"), label=SPLEEN)
    return spleen


def paint_liver(volume: PhantomVolume, person: Person, frame: Frame, *, neighbors: Sequence[Solid]) -> Solid:
    """Paint the liver: a right and a left lobe under the diaphragm, hollow where other organs press in."""
    space = volume.space
    shift = person.place("liver", (0.0, 0.0, 0.0), 3.5)
    box = space.box((-75.0, -100.0, -90.0), (140.0, 100.0, 130.0))
    points = space.at(box)
    right = np.asarray((72.0, 3.0, 32.0)) + shift
    left = np.asarray((-2.0, 38.0, 58.0)) + shift
    lobes = Solid(box, ellipsoid_distance(points, right, person.size("right lobe", (70.0, 86.0, 88.0), 0.04)))
    tilt = person.tilt("left lobe", (0.0, 14.0, 0.0))
    lobes = lobes.joined(
        ellipsoid_distance(points, left, person.size("left lobe", (66.0, 38.0, 37.0)), tilt), smooth_mm=26.0
    )
    lobes = lobes.grown(space.field(box, person.bumps("liver", wavelength_mm=34.0)) * np.float32(2.2))
    # The visceral surface: from the right lower tip up to the left, and hollow above duodenum and pancreas.
    x, y, z = points
    rise = np.float32(0.55) * (np.float32(95.0) - x) + np.float32(0.12) * y
    underside = (np.float32(shift[2] - 58.0) + rise - z) * np.float32(0.85)
    lobes = lobes.inside(underside, smooth_mm=22.0)
    hollow = ellipsoid_distance(points, (12.0, -22.0, 0.0), (33.0, 46.0, 42.0))
    lobes = lobes.without(Solid(box, hollow), smooth_mm=12.0)
    lobes = frame.abdomen(_beside(lobes, neighbors), gap_mm=2.5).main_part()
    volume.paint(lobes, person.hu("liver"), label=LIVER)
    return lobes


def paint_gallbladder(volume: PhantomVolume, person: Person) -> Solid:
    """Paint the gallbladder, which hangs under the liver."""
    half = person.size("gallbladder", (12.0, 17.0, 24.0), 0.15)
    center = person.place("gallbladder", (56.0, 42.0, -14.0), 3.0)
    bladder = ellipsoid(volume.space, center, half, person.tilt("gallbladder", (0.0, 0.0, 0.0)))
    volume.paint(bladder, person.hu("bile"))
    return bladder


def paint_pancreas(volume: PhantomVolume, person: Person, *, neighbors: Sequence[Solid]) -> Solid:
    """Paint the pancreas: head in the bend of the duodenum, body over the spine, tail toward the spleen."""
    space = volume.space
    path = np.asarray([(31, 12, -34), (27, 16, -14), (14, 24, 2), (-14, 28, 10), (-44, 8, 20), (-66, -12, 30)], float)
    path += person.generator("place", "pancreas").normal(size=path.shape).clip(-1.8, 1.8) * (2.5, 2.5, 3.0)
    radii = np.asarray((12.5, 16.0, 11.0, 11.5, 12.0, 11.5)) * person.generator("size", "pancreas").uniform(0.92, 1.1)
    gland = tube(space, path, radii.tolist(), smooth_mm=5.0)
    lobules = space.field(gland.box, person.bumps("pancreas", wavelength_mm=9.0)) * np.float32(0.9)
    gland = gland.grown(lobules)
    gland = _beside(gland, neighbors).main_part()
    volume.paint(gland, person.hu("pancreas"), label=PANCREAS)
    return gland


def _beside(solid: Solid, neighbors: Sequence[Solid]) -> Solid:
    """Return the solid with room for its neighbors and a little fat between them."""
    for neighbor in neighbors:
        solid = solid.without(neighbor.grown(1.5), smooth_mm=3.0)
    return solid
