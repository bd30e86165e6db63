"""``python -m stages.autoencoder``."""

from stages.autoencoder.train import main

if __name__ == "__main__":
    main()
