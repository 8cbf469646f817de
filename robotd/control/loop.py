"""The control loop: one tick, in the order of the data."""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from robotd.bus.arm import Arm
from robotd.config import Config
from robotd.control.clock import Clock
from robotd.control.limb import Limb
from robotd.control.sources import Sources
from robotd.control.supervisor import Supervisor
from robotd.ipc.inbox import Chunk, Command
from robotd.ipc.ring import Fault, JointReport, Mode, RingWriter, TickReport
from robotd.ipc.say import say

_READ_SHARE = 0.75  # of the period: what a tick may spend on waiting for replies


class Messages(Protocol):
    """Where commands and chunks come from: robotd.ipc.inbox.Inbox, or the like in one process."""

    dropped: Counter[str]

    def drain(self, limit: int = 16) -> tuple[list[Command], Chunk | None]:
        """New commands in order, and the newest chunk."""
        ...

    def close(self) -> None:
        """Nothing more will be taken."""
        ...


class ControlLoop:
    """The loop over all arms: `start`, `tick` once per deadline until `finished`, `close`."""

    def __init__(
        self,
        config: Config,
        arms: Sequence[Arm],
        ring: RingWriter,
        inbox: Messages,
        clock: Clock,
        degraded: int = 0,
    ) -> None:
        """Arms in the order of `config.arms`. Raises ConfigError when limits cannot be held."""
        self.limbs: list[Limb] = []
        for arm_config, arm in zip(config.arms, arms, strict=True):
            first = sum(len(limb.names) for limb in self.limbs)
            self.limbs.append(Limb(arm_config, arm, first, config.control.period_ns * 1e-9))
        self.sources = Sources(config, self.limbs)
        self.supervisor = Supervisor(config, self.limbs, self.sources)
        self.missed_ticks = 0  # set by whoever paces the loop
        self.report = TickReport(degraded=degraded)
        self.report.joints = [JointReport() for _ in self.sources.hold]
        self._ring, self._inbox, self._clock = ring, inbox, clock
        self._patience_ns = round(_READ_SHARE * config.control.period_ns)
        self._stop_requests = 0
        self._messages = 0
        self._defects = 0

    @property
    def mode(self) -> Mode:
        """The present mode."""
        return self.supervisor.mode

    @property
    def finished(self) -> bool:
        """Stopped as configured: no further tick is wanted."""
        return self.supervisor.finished

    def start(self) -> None:
        """Connect and configure every arm, torque off. Raises RobotdError; nothing moves."""
        for limb in self.limbs:
            limb.arm.connect()
            limb.arm.configure()

    def request_stop(self) -> None:
        """Stop as configured, from the next tick on; a second request: torque off at once."""
        self._stop_requests += 1

    def close(self) -> None:
        """Close ring, inbox and ports."""
        self._ring.close()
        self._inbox.close()
        for limb in self.limbs:
            limb.arm.close()

    def tick(self, deadline_ns: int | None = None) -> None:
        """Read, decide on the mode, limit, guard, write, publish. Raises nothing.

        Targets belong to the deadline (default: now), however late the tick is; the guard alone
        looks at the real time.
        """
        woke = self._clock.now_ns()
        now = woke if deadline_ns is None else deadline_ns
        try:
            self._read(woke)
            read = self._clock.now_ns()
            self._update_mode(now, read)
            wanted = self.sources.wanted(self.mode, now)
            self._limit_and_guard(wanted, now)
            decided = self._clock.now_ns()
            self._write()
            self._publish(wanted, now, woke, read, decided)
        except Exception as error:
            self._survive(error, now)

    def _read(self, now_ns: int) -> None:
        """All arms' readings; every request goes out before any reply is awaited."""
        for limb in self.limbs:
            limb.request()
        for limb in self.limbs:
            limb.collect(now_ns + self._patience_ns)

    def _update_mode(self, now_ns: int, real_ns: int) -> None:
        commands, chunk = self._inbox.drain()
        self.supervisor.update(commands, self._stop_requests, now_ns)
        if chunk is not None:
            self.sources.offer(chunk, self.mode, max(now_ns, real_ns))

    def _limit_and_guard(self, wanted: Sequence[float], now_ns: int) -> None:
        """Limiter, then guard: what passes both is what `_write` sends."""
        for limb in self.limbs:
            if not limb.driven:
                continue
            frozen = self.supervisor.frozen
            goals = limb.guard.last if frozen else limb.shape(wanted[limb.joints])
            block = limb.check(goals, self._clock.now_ns())
            if block is not None:
                text = f"blocked: {block.reason}"
                self.supervisor.raise_fault(Fault.GUARD, now_ns, text, limb, block.joint)

    def _write(self) -> None:
        for limb in self.limbs:
            limb.write()

    def _publish(
        self, wanted: Sequence[float], now_ns: int, woke_ns: int, read_ns: int, decided_ns: int
    ) -> None:
        """Fill the report and put it into the ring."""
        supervisor, report, done_ns = self.supervisor, self.report, self._clock.now_ns()
        report.sequence += 1
        report.deadline_ns = now_ns
        report.wake_late_ns = max(0, woke_ns - now_ns)
        report.read_ns = read_ns - woke_ns
        report.decide_ns = decided_ns - read_ns
        report.write_ns = done_ns - decided_ns
        report.done_late_ns = max(0, done_ns - now_ns)
        report.missed_ticks = self.missed_ticks
        report.mode, report.fault = supervisor.mode, supervisor.fault
        report.fault_joint = supervisor.fault_joint
        if self._messages != supervisor.messages:
            self._messages = supervisor.messages
            report.message = supervisor.message
            report.message_sequence = report.sequence
        result = supervisor.results.next()
        if result is not None:
            report.command_id, report.command_result, report.command_text = result
        self._publish_counts(now_ns)
        for limb in self.limbs:
            self._fill(limb, wanted)
        self._ring.publish(report)

    def _publish_counts(self, now_ns: int) -> None:
        report, plan, sample = self.report, self.sources.plan, self.sources.sample
        report.torque = False
        report.failed_ticks = report.bus_errors = report.bus_retries = 0
        for limb in self.limbs:
            counters = limb.arm.counters
            report.torque = report.torque or limb.engaged
            report.failed_ticks += limb.failed
            report.bus_errors += counters.timeouts + counters.crc_errors
            report.bus_retries += counters.retries
        report.chunks = plan.accepted
        report.chunks_dropped = sum(plan.rejected.values())
        report.inbox_dropped = sum(self._inbox.dropped.values())
        if sample is None:
            report.chunk_sequence = report.chunk_age_ns = 0
            report.chunk_step = float("nan")
        else:
            report.chunk_sequence = sample.sequence
            report.chunk_age_ns = sample.age_ns
            report.chunk_step = sample.step

    def _fill(self, limb: Limb, wanted: Sequence[float]) -> None:
        """The joints of one arm: readings, targets asked and applied, what was limited."""
        reports = self.report.joints
        applied = limb.guard.last if limb.engaged else limb.position
        for index, reading in enumerate(limb.readings):
            joint = reports[limb.first + index]
            joint.valid = reading.valid and not limb.lost
            joint.position = reading.position
            joint.velocity = reading.velocity
            joint.load = reading.load
            joint.status = reading.status
            joint.temperature_c = reading.temperature_c
            joint.voltage_v = reading.voltage_v
            joint.applied = applied[index]
            joint.asked = wanted[limb.first + index] if limb.engaged else joint.applied
            joint.limited = limb.limited[index] if limb.driven else 0

    def _survive(self, error: Exception, now_ns: int) -> None:
        """A defect of this program: fault, repeat the last goals, say so once on stderr."""
        self._defects += 1
        text = f"defect in the control loop: {type(error).__name__}: {error}"
        if self._defects == 1:
            say("control", text)
        with suppress(Exception):
            self.supervisor.raise_fault(Fault.INTERNAL, now_ns, text)
        with suppress(Exception):
            self._write()
        with suppress(Exception):
            self._publish(self.sources.hold, now_ns, now_ns, now_ns, now_ns)
