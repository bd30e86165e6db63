"""NIfTI files as they are on disk."""
