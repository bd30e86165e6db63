"""Synthetic tumors: drawing, placing, texturing and blending them."""
