"""`python -m fewer` is `fewer`."""

import sys

from fewer.cli import main

sys.exit(main())
