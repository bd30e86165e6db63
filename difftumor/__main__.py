"""``python -m difftumor`` is ``difftumor``."""

from difftumor.cli import main

if __name__ == "__main__":
    main()
