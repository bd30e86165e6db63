"""Networks, diffusion, and the artifacts that hold them."""
