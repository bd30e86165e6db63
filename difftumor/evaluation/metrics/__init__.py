"""Metrics of masks and of lesions."""
