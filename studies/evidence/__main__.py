"""``python -m studies.evidence``."""

import sys

from studies.evidence.study import main

if __name__ == "__main__":
    sys.exit(main())
