"""Results of commands on their way to the ring, which shows one per tick."""

from collections import deque

from robotd.control.modes import Event
from robotd.ipc.ring import Result

EVENTS: dict[str, Event] = {
    "arm": Event.ARM,
    "disarm": Event.DISARM,
    "hold": Event.HOLD,
    "park": Event.PARK,
    "policy": Event.POLICY,
    "estop": Event.ESTOP,
    "clear": Event.CLEAR,
}
_MOST = 256  # results waiting; the oldest gives way


class Results:
    """A queue, so that two commands of one tick both get their answer."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, Result, str]] = deque(maxlen=_MOST)
        self._open: list[int] = []  # disarm commands that wait until torque is off

    def done(self, command: int) -> None:
        """The command was carried out."""
        self._waiting.append((command, Result.DONE, ""))

    def refused(self, command: int, why: str) -> None:
        """The command was not carried out; `why` says what to do."""
        self._waiting.append((command, Result.REFUSED, why))

    def later(self, command: int) -> None:
        """The command was accepted; `settle` gives its result."""
        self._open.append(command)

    @property
    def unsettled(self) -> bool:
        """Whether an accepted command waits for its result."""
        return bool(self._open)

    def settle(self, why_not: str = "") -> None:
        """Give all accepted commands their result: done, or refused with a reason."""
        for command in self._open:
            if why_not:
                self.refused(command, why_not)
            else:
                self.done(command)
        self._open.clear()

    def next(self) -> tuple[int, Result, str] | None:
        """The result to show in this tick, if there is a new one."""
        return self._waiting.popleft() if self._waiting else None
