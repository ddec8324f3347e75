"""A learning rate range test for each param group."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lrfinder.commands import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `range_test`; returns the exit status."""
    return run_command("range_test", argv)


if __name__ == "__main__":
    sys.exit(main())
