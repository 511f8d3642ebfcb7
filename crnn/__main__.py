"""``python -m crnn`` is the same as ``crnn``."""

import sys

from crnn.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
