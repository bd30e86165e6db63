"""Evaluation of segmenters, of synthesis, and of the autoencoder."""
