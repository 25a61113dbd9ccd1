"""``python -m seqrec.cli``."""

import sys

from seqrec.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
