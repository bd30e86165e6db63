"""Writing files and folders whole or not at all, locks, and which earlier results may be replaced."""
