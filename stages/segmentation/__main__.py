"""``python -m stages.segmentation``."""

from stages.segmentation.train import main

if __name__ == "__main__":
    main()
