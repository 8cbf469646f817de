"""`python -m robotd.sim`: the simulator process, see `robotd.sim.process`."""

import sys

from robotd.sim.process import main

sys.exit(main())
