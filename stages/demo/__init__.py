"""The demo: all stages on a phantom."""
