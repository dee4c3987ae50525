"""Entry point of ``python -m masklab.cli``."""

import sys

from masklab.cli import main

sys.exit(main())
