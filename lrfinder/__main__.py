"""`python -m lrfinder`: the same as the console script `lrfinder`."""

import sys

from lrfinder.commands import main

if __name__ == "__main__":
    sys.exit(main())
