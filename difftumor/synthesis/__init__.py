"""How a tumor is drawn, placed, textured and blended."""
