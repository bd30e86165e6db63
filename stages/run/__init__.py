"""What all stages share: command line, settings, run folder, trainer, data."""
