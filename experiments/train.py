"""One training with a learning rate for each group and a schedule."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lrfinder.commands import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `train`; returns the exit status."""
    return run_command("train", argv)


if __name__ == "__main__":
    sys.exit(main())
