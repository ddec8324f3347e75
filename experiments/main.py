"""The whole story: range test, search, training beside baselines, report."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lrfinder.commands import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `main`; returns the exit status."""
    return run_command("main", argv)


if __name__ == "__main__":
    sys.exit(main())
