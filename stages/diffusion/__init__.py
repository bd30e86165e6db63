"""Stage 2: the diffusion model."""
