"""Following control's state ring, through restarts of control."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from robotd.errors import IpcError
from robotd.ipc.ring import RingReader, TickReport

_LOOK_AGAIN_NS = 100_000_000  # a ring that is silent, or not there, is looked for this often
_SILENT_NS = 50_000_000  # no tick for this long: has control been restarted?


class RingFollower:
    """The newest tick of whichever control process is running. `text`: why there is none."""

    def __init__(self, path: Path, joints: Sequence[str]) -> None:
        """`joints` are the names that the ring must have, in order."""
        self._path = path
        self._joints = tuple(joints)
        self._ring: RingReader | None = None
        self._looked_ns = 0
        self._read = 0
        self.period_ns = 0
        self.text = "control is not running yet"

    def newest(self, now_ns: int) -> TickReport | None:
        """The newest tick, which may be old when control has ended; None without a ring."""
        report = self._ring.latest() if self._ring is not None else None
        silent = report is None or now_ns - report.deadline_ns > _SILENT_NS
        if silent and now_ns - self._looked_ns > _LOOK_AGAIN_NS:
            self._looked_ns = now_ns
            if self._ring is None or self._ring.replaced:
                self._reopen()
                report = self._ring.latest() if self._ring is not None else None
        return report

    def unread(self) -> Iterator[TickReport]:
        """Ticks that came since the last call, in order."""
        if self._ring is not None:
            for report in self._ring.since(self._read):
                self._read = report.sequence
                yield report

    def skip_unread(self) -> None:
        """The next `unread` begins after the newest tick."""
        if self._ring is not None:
            self._read = self._ring.last

    def _reopen(self) -> None:
        self.close()
        try:
            ring = RingReader(self._path)
        except IpcError as error:
            self.text = str(error)
            return
        if ring.layout.joints != self._joints:
            names = ", ".join(ring.layout.joints)
            self.text = f"control runs other joints than configured: {names}"
            ring.close()
            return
        self._ring, self._read, self.text = ring, ring.last, ""
        self.period_ns = ring.layout.period_ns

    def close(self) -> None:
        """Unmap the ring."""
        if self._ring is not None:
            self._ring.close()
            self._ring = None
