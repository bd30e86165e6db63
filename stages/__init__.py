"""Training: one module per stage, each a LightningModule, a LightningDataModule and a Hydra entry point."""
