"""``python -m seqrec`` is the command ``seqrec``, for programs that start modules, such as torchrun."""

import sys

from seqrec.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
