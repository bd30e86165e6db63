"""The networks: modules only, no losses, no files."""
