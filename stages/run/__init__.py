"""What the stages share while they run: run folder, trainer, data, command line."""
