"""``python -m studies.transfer``."""

import sys

from studies.transfer.study import main

if __name__ == "__main__":
    sys.exit(main())
