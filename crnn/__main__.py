"""The start of the program: ``crnn`` and ``python -m crnn`` are the same."""

import sys


def start() -> int:
    """Load and run the program; Ctrl-C while it is still being loaded ends it as it does later.

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


if __name__ == "__main__":
    sys.exit(start())
