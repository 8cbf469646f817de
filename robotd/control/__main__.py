"""`python -m robotd.control`"""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # while modules are imported: end, say nothing

import sys  # noqa: E402

from robotd.control.process import main  # noqa: E402

sys.exit(main())
