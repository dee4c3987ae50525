"""Entry point of ``python -m masklab.cli``."""

import sys

from masklab.cli.app import main

sys.exit(main())
