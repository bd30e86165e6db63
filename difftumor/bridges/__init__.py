"""What other programs read: nnU-Net's data sets and MONAI's bundles."""
