"""`python -m robotd.observer`: the observer as a child of the daemon.

Exit code 2, with one line on stderr, when bundle, arm and cameras do not fit together.
"""

import argparse
import logging
import sys
from pathlib import Path

from robotd.errors import RobotdError
from robotd.ipc.lifetime import PROMPT, end_with_parent, prefer
from robotd.ipc.say import DATE_FORMAT, log_format
from robotd.observer.process import run

USAGE_ERROR = 2


def main() -> int:
    """Run with the daemon's resolved configuration."""
    parser = argparse.ArgumentParser(prog="python -m robotd.observer", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="resolved configuration")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format=log_format("observer"), datefmt=DATE_FORMAT)
    end_with_parent()
    prefer(PROMPT)
    try:
        run(given.config)
    except RobotdError as error:
        print(f"robotd observer: {error}", file=sys.stderr)
        return USAGE_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
