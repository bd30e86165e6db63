"""The test card of an autoencoder: whether it is good enough for stage 2, and why."""
