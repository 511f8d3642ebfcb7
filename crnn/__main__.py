"""The start of the program: ``crnn`` and ``python -m crnn`` are the same."""

import os
import sys


def start() -> int:
    """Load and run the program; Ctrl-C, or a part that is missing, while it is being loaded ends it as later.

    Returns
    -------
    int
        The exit code, see `crnn.cli.main.main`.
    """
    try:
        from crnn.cli.main import main

        return main()
    except KeyboardInterrupt:
        print("\ncrnn: interrupted", file=sys.stderr)
        return 130
    except ImportError as error:  # of the program itself: what a command lacks is said by `main`
        if os.environ.get("CRNN_TRACEBACK"):
            raise
        print(f"crnn: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(start())
