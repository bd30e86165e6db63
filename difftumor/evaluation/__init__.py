"""Metrics per case and per lesion, and their tables."""
