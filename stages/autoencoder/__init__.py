"""Stage 1: the autoencoder."""
