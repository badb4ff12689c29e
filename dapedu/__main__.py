"""`python -m dapedu` is `dapedu`."""

import sys

from dapedu.cli import main

sys.exit(main())
