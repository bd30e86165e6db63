"""Feature networks for distances between sets of tumors."""
