"""Segmenting whole scans with trained segmenters."""
