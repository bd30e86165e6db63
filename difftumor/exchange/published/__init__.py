"""Reading and writing of the published checkpoints."""
