"""`python -m ropex`, for launchers such as `accelerate launch -m ropex eval ...`."""

import sys

from ropex.cli import main

sys.exit(main())
