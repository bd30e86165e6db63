"""From what a user types to the typed options of a stage; nothing here needs PyTorch."""
