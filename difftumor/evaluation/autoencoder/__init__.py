"""The test card of an autoencoder."""
