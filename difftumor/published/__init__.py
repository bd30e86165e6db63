"""Reading the weights that the authors of DiffTumor publish, and making artifacts of them."""
