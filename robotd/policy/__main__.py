"""`python -m robotd.policy`: the worker as a child of the daemon, or on its own.

Exit code 2, with one line on stderr, when the bundle or the endpoint cannot be used.
"""

import argparse
import sys
from pathlib import Path

from robotd.config import load
from robotd.errors import ConfigError, RobotdError
from robotd.ipc.lifetime import PROMPT, end_with_parent, prefer
from robotd.policy.endpoint import default_endpoint
from robotd.policy.fit import expected
from robotd.policy.worker import serve

USAGE_ERROR = 2


def main() -> int:
    """Serve what the arguments, or the daemon's resolved configuration, name."""
    parser = argparse.ArgumentParser(prog="python -m robotd.policy", description=__doc__)
    parser.add_argument("--config", type=Path, help="resolved configuration of the daemon")
    parser.add_argument("--bundle", type=Path, help="folder of the bundle")
    parser.add_argument("--endpoint", help="ipc://PATH or tcp://HOST:PORT")
    parser.add_argument("--keys", type=Path, help="folder of CURVE keys")
    given = parser.parse_args()
    if given.config is None and (given.bundle is None or given.endpoint is None):
        parser.error("give --config, or --bundle and --endpoint")
    end_with_parent()
    prefer(PROMPT)
    try:
        if given.config is None:
            serve(given.bundle, given.endpoint, given.keys)
        else:
            _serve_config(given.config)
    except RobotdError as error:
        print(f"robotd worker: {error}", file=sys.stderr)
        return USAGE_ERROR
    return 0


def _serve_config(path: Path) -> None:
    config = load(path)
    policy = config.policy
    if policy is None:
        raise ConfigError(f"{path}: policy: is missing, there is nothing to serve")
    endpoint = policy.endpoint or default_endpoint(config.runtime_dir)
    serve(policy.bundle, endpoint, policy.keys, *expected(config))


if __name__ == "__main__":
    sys.exit(main())
