"""Synthesis in whole scans, from file to file."""
