"""`robotd`, and `python -m robotd`: the command line, silent when it is interrupted early."""

import signal

_INTERRUPTED = signal.getsignal(signal.SIGINT)  # ignored in a script's background
if _INTERRUPTED is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while modules are imported: end, say nothing

from robotd.cli import main as run_command  # noqa: E402


def main() -> None:
    """Run the command that the arguments name."""
    signal.signal(signal.SIGINT, _INTERRUPTED)
    run_command()


if __name__ == "__main__":
    main()
