"""Shapes of tumors: deformed ellipsoids, and masks."""

from difftumor.synthesis.shapes.ellipsoids import farthest_mm, reach_mm, tumor_shape
from difftumor.synthesis.shapes.masks import MaskShape, odd_sized

__all__ = ["MaskShape", "farthest_mm", "odd_sized", "reach_mm", "tumor_shape"]
