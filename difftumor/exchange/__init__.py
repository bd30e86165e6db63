"""Exchange with nnU-Net, MONAI, and the published checkpoints."""
