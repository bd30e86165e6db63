"""A person without tumors, painted part by part."""

from difftumor.datasets.phantom.canvas import Canvas
from difftumor.datasets.phantom.frame import paint_frame
from difftumor.datasets.phantom.person import Person
from difftumor.datasets.phantom.vessels import paint_great_vessels, paint_liver_veins, paint_portal_system
from difftumor.datasets.phantom.viscera import (
    paint_bowel,
    paint_gallbladder,
    paint_kidneys,
    paint_liver,
    paint_pancreas,
    paint_spleen,
)


def paint_anatomy(canvas: Canvas, person: Person) -> None:
    """Paint a healthy abdomen: HU without noise, and the labels of the organs."""
    frame = paint_frame(canvas, person)
    paint_bowel(canvas, person, frame)
    paint_great_vessels(canvas, person)
    right, left = paint_kidneys(canvas, person)
    spleen = paint_spleen(canvas, person, frame, neighbors=(left,))
    gallbladder = paint_gallbladder(canvas, person)
    pancreas = paint_pancreas(canvas, person, neighbors=(right, left, spleen))
    liver = paint_liver(canvas, person, frame, neighbors=(right, spleen, gallbladder, pancreas))
    paint_portal_system(canvas, person)
    paint_liver_veins(canvas, person, liver)
