"""Runs read back from MLflow, side by side."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lrfinder.commands import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `compare`; returns the exit status."""
    return run_command("compare", argv)


if __name__ == "__main__":
    sys.exit(main())
