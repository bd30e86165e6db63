"""``python -m stages.diffusion``."""

from stages.diffusion.train import main

if __name__ == "__main__":
    main()
