"""`python -m kos`."""

import sys

from kos.cli import main

sys.exit(main())
