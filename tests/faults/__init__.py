"""Harm done to files, processes and disks, and what has to come of it."""
