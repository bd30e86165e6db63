"""Labels of a phantom: the same ids whichever organs a cohort asks for."""

from collections.abc import Mapping

BACKGROUND = 0
LIVER = 1
PANCREAS = 2
KIDNEY_RIGHT = 3
KIDNEY_LEFT = 4
SPLEEN = 5

LABEL_NAMES: Mapping[str, int] = {
    "background": BACKGROUND,
    "liver": LIVER,
    "pancreas": PANCREAS,
    "kidney_right": KIDNEY_RIGHT,
    "kidney_left": KIDNEY_LEFT,
    "spleen": SPLEEN,
    "liver_tumor": 6,
    "pancreas_tumor": 7,
    "kidney_tumor": 8,
}

# Organ that a user may ask tumors for -> labels that it may grow in.
TUMOR_ORGANS: Mapping[str, tuple[int, ...]] = {
    "liver": (LIVER,),
    "pancreas": (PANCREAS,),
    "kidney": (KIDNEY_RIGHT, KIDNEY_LEFT),
}


def tumor_label(organ: str) -> int:
    """Return the label of the tumors of an organ."""
    return LABEL_NAMES[f"{organ}_tumor"]
