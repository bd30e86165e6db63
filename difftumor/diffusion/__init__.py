"""Noise schedule, samplers and the latent codec."""
