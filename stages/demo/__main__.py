"""``python -m stages.demo``."""

import sys

from stages.demo.run import main

if __name__ == "__main__":
    sys.exit(main())
