"""Robustness of a segmenter to tumors that differ in one respect."""
