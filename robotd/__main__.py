"""`robotd`, and `python -m robotd`: the command line, silent when it is interrupted early."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # while modules are imported: end, say nothing

from robotd.cli import main as run_command  # noqa: E402


def main() -> None:
    """Run the command that the arguments name."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run_command()


if __name__ == "__main__":
    main()
