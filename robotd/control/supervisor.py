"""What commands, faults and the passing of time do to the mode of the loop.

Silence of the policy: the rest of the chunk in use, then the targets brake to a stop and stay
(still mode POLICY), then HOLD after the silence time-out, then the park pose if so configured.
Every fault latches, and the first one is kept (an emergency stop replaces it); what the arms do in
each is the table in robotd/control/faults.py. A disarm has its result once torque is off.
"""

from collections.abc import Sequence

from robotd.config import Config, PolicyConfig
from robotd.control.faults import STOPS, Stop
from robotd.control.limb import Limb
from robotd.control.modes import Event, next_mode, refusal
from robotd.control.orders import EVENTS, Results
from robotd.control.sources import Sources
from robotd.errors import BusError, RobotdError
from robotd.ipc.inbox import Command
from robotd.ipc.ring import Fault, Mode

_RECOVER_NS = 100_000_000  # between two steps towards a lost bus
_SETTLE_NS = 100_000_000  # targets at rest for this long: the arm is too
_RESTART_NS = 100_000_000, 3_000_000_000  # a servo needs so long to restart: at least, at most


class Supervisor:
    """Mode, fault and message of the loop. All times are the loop's deadlines, nanoseconds."""

    def __init__(self, config: Config, limbs: Sequence[Limb], sources: Sources) -> None:
        self._control, self._at_stop = config.control, config.stop
        self._policy = config.policy or PolicyConfig.model_construct()
        self._limbs, self._sources = limbs, sources
        self.mode = Mode.IDLE
        self.fault = Fault.NONE
        self.fault_joint = -1  # index among the joints of all arms
        self.message = ""
        self.messages = 0  # said so far
        self.results = Results()
        self.frozen = False  # repeat the last goals: the limiter is not trusted
        self.stopping = False
        self.finished = False  # stopped as configured: no further tick is wanted
        self._faults_seen: set[tuple[Fault, str]] = set()
        self._recover_at = 0
        self._rest_since: int | None = None
        self._stop_by = 0
        self._restarting: list[str] = []  # servos that clearing has restarted, not yet back
        self._restarted_at = 0

    def update(self, commands: Sequence[Command], stop_requests: int, now_ns: int) -> None:
        """Commands first, then faults, then what time has brought about."""
        self._obey_all(commands, now_ns)
        if self._restarting:
            self._await_servos(now_ns)
        else:
            for limb in self._limbs:
                self._examine(limb, now_ns)
        if self.mode is Mode.FAULT and now_ns >= self._recover_at:
            self._recover_at = now_ns + _RECOVER_NS
            for limb in self._limbs:
                limb.recover()
        if stop_requests:
            self._stop(stop_requests, now_ns)
        if self.results.unsettled and self._at_rest(now_ns):
            self._release_and_idle(now_ns, "disarmed")
        if self.mode is Mode.POLICY:
            self._mind_silence(now_ns)
        elif self.mode is Mode.PARK and self._sources.parked:
            self._happens(Event.PARKED, now_ns, "parked")

    def _happens(self, event: Event, now_ns: int, text: str, source: str = "") -> None:
        """Take the mode that follows an event; nothing where the event means nothing."""
        mode = next_mode(self.mode, event)
        if mode is None:
            return
        self.mode = mode
        self._rest_since = None
        self._sources.enter(mode, now_ns, source)
        self.say(text)

    def say(self, text: str) -> None:
        """Put an event into words, for the ring."""
        self.message = text
        self.messages += 1

    # Commands

    def _obey_all(self, commands: Sequence[Command], now_ns: int) -> None:
        """In order; but an emergency stop comes first, and nothing beside it is obeyed."""
        stops = [command for command in commands if command.name == "estop"]
        for command in stops or commands:
            self._obey(command, now_ns)
        if stops:
            for command in commands:
                if command.name != "estop":
                    self.results.refused(command.id, "overtaken by an emergency stop")

    def _obey(self, command: Command, now_ns: int) -> None:
        """Carry out one command, or refuse it with a reason."""
        event = EVENTS[command.name]
        why = self._objection(event, command.source)
        if not why and event in (Event.DISARM, Event.CLEAR):
            self.results.later(command.id)
            (self._disarm if event is Event.DISARM else self._clear)(now_ns)
            return
        if not why:
            self.results.settle(f"overtaken by {command.name}")
            why = self._carry_out(event, command.source, now_ns)
        if why:
            self.results.refused(command.id, why)
        else:
            self.results.done(command.id)

    def _objection(self, event: Event, source: str) -> str:
        """Why a command cannot be obeyed now, "" when it can."""
        if self._restarting and event is not Event.ESTOP:
            return f"a fault is being cleared: {', '.join(self._restarting)} restarts; wait"
        if next_mode(self.mode, event) is None:
            return refusal(self.mode, event)
        if self.stopping and event is not Event.ESTOP:
            return "robotd is stopping"
        if event is Event.PARK and not self._sources.can_park:
            return "no arm has a park pose: set `park` in the configuration"
        if event is Event.POLICY and not source:
            return "the command names no source of chunks (a bundle's digest)"
        if event in (Event.PARK, Event.POLICY):
            doubtful = [limb.id for limb in self._limbs if limb.doubtful]
            if doubtful:
                return f"{doubtful[0]}: was silent; torque is being checked, try again in a second"
        if event in (Event.ARM, Event.CLEAR):
            for limb in self._limbs:
                if event is Event.CLEAR:
                    why = limb.obstacle(limb.arm.curable)
                else:
                    why = limb.obstacle() or limb.misplaced()
                if why:
                    return why
        return ""

    def _carry_out(self, event: Event, source: str, now_ns: int) -> str:
        """Do what a command asks for; "" or why it did not work."""
        if event is Event.ESTOP:
            self.raise_fault(Fault.ESTOP, now_ns, "emergency stop: torque off by command")
        elif event is Event.ARM:
            return self._engage(now_ns)
        elif event is Event.HOLD:
            self._happens(event, now_ns, "holding")
        elif event is Event.PARK:
            self._happens(event, now_ns, "parking")
        else:
            self._happens(event, now_ns, f"following {source[:16]}", source)
        return ""

    def _engage(self, now_ns: int) -> str:
        try:
            for limb in self._limbs:
                limb.engage(now_ns)
        except BusError as error:
            self.raise_fault(Fault.ENGAGE_FAILED, now_ns, f"not armed: {error}", limb)
            return str(error)
        self._happens(Event.ARM, now_ns, "armed")
        return ""

    def _disarm(self, now_ns: int) -> None:
        """Category 1: brake, and torque off once at rest; in a fault torque goes off now."""
        if self.mode in (Mode.IDLE, Mode.FAULT):
            self.results.settle(self._release_all())
        else:
            self._happens(Event.DISARM, now_ns, "stopping to disarm")

    def _release_all(self) -> str:
        """Torque off everywhere; "" or what went wrong first. What failed is tried again."""
        failures = [text for limb in self._limbs if (text := limb.release())]
        return failures[0] if failures else ""

    def _clear(self, now_ns: int) -> None:
        """Torque off; servos that had shut down are restarted; IDLE once all is set up again."""
        why = self._release_all()
        try:
            for limb in () if why else self._limbs:
                self._restarting += limb.restart_servos()
        except BusError as error:
            why = str(error)
        if why:
            self._not_cleared(why)
        elif self._restarting:
            self._restarted_at = now_ns
            self.say(f"clearing {self.fault.name}: {', '.join(self._restarting)} restarts")
        else:
            self._finish_clearing(now_ns, "")

    def _await_servos(self, now_ns: int) -> None:
        """Go on with clearing when the restarted servos are back."""
        least, most = _RESTART_NS
        waited = now_ns - self._restarted_at
        lost = next((limb.lost for limb in self._limbs if limb.lost), "")
        absent = any(limb.silent for limb in self._limbs)
        if waited < least or (absent and not lost and waited < most):
            return
        names = ", ".join(self._restarting)
        self._restarting.clear()
        if lost or absent:
            self._not_cleared(lost or f"{names} did not come back from its restart")
        else:
            self._finish_clearing(now_ns, f"; restarted: {names}")

    def _finish_clearing(self, now_ns: int, also: str) -> None:
        try:
            for limb in self._limbs:
                limb.set_up_again()
        except RobotdError as error:
            self._not_cleared(str(error))
            return
        self._idle(Event.CLEAR, now_ns, f"{self.fault.name} cleared: torque is off{also}")

    def _not_cleared(self, why: str) -> None:
        self._restarting.clear()
        self.say(f"{self.fault.name} not cleared: {why}")
        self.results.settle(why)

    def _release_and_idle(self, now_ns: int, text: str) -> None:
        """Torque off, then IDLE; FAULT when a servo does not confirm it."""
        why = self._release_all()
        if why:
            text = f"torque is not off everywhere: {why}"
            self.raise_fault(Fault.BUS_SILENT, now_ns, text)
        else:
            self._idle(Event.RELEASED, now_ns, text)

    def _idle(self, event: Event, now_ns: int, text: str) -> None:
        """Torque is off, and nothing is wrong any more."""
        self._happens(event, now_ns, text)
        self.results.settle()
        self.fault, self.fault_joint = Fault.NONE, -1
        self.frozen = False
        self._faults_seen.clear()
        for limb in self._limbs:
            limb.watch.restart()  # this tick's readings are from before

    # Faults

    def _examine(self, limb: Limb, now_ns: int) -> None:
        """Faults of one arm: contact, then what its servos say."""
        control = self._control
        if not limb.lost and limb.silent >= control.failed_ticks_fault:
            limb.lose(
                Fault.BUS_SILENT,
                f"{limb.id}: no answer from {limb.silent_joints()} for {limb.silent} ticks; "
                "check cable and power",
            )
        if limb.lost:
            self.raise_fault(limb.lost_fault, now_ns, limb.lost, limb)
            return
        if limb.silent >= control.failed_ticks_hold and self.mode in (Mode.POLICY, Mode.PARK):
            text = f"{limb.id}: no answer from {limb.silent_joints()}: holding"
            self._happens(Event.BUS_TROUBLE, now_ns, text)
        finding = limb.look()
        if finding is not None:
            self.raise_fault(finding.fault, now_ns, finding.text, limb, finding.joint)

    def raise_fault(
        self, fault: Fault, now_ns: int, text: str, limb: Limb | None = None, joint: int = -1
    ) -> None:
        """Latch a fault and stop as its row in STOPS says; known ones change nothing."""
        key = (fault, limb.id if limb else "")
        if key in self._faults_seen and fault is not Fault.ESTOP:
            return
        self._faults_seen.add(key)
        self._restarting.clear()
        if self.mode is not Mode.FAULT or fault is Fault.ESTOP:
            self.fault = fault
            self.fault_joint = limb.first + joint if limb and joint >= 0 else -1
            self._happens(Event.ESTOP if fault is Fault.ESTOP else Event.FAULTED, now_ns, text)
        else:
            self.say(text)
        stop = STOPS[fault]
        if stop is Stop.FREEZE:
            self.frozen = True
        elif stop is Stop.RELEASE:
            why = self._release_all()
            if why:
                self.say(f"{text}; but {why}")
        elif limb is not None and stop is Stop.LEAVE:
            limb.leave()
        elif limb is not None and stop is Stop.RELEASE_ARM:
            limb.release()
        self.results.settle(f"in a fault: {text}")

    # Time

    def _mind_silence(self, now_ns: int) -> None:
        limit_s = self._policy.silence_timeout_s
        if self._sources.silent_ns(now_ns) <= limit_s * 1e9:
            return
        self._happens(Event.SILENT, now_ns, f"no usable chunk for {limit_s:g} s: holding")
        if self._policy.park_when_silent and self._sources.can_park:
            self._happens(Event.PARK, now_ns, f"no usable chunk for {limit_s:g} s: parking")

    def _at_rest(self, now_ns: int) -> bool:
        """Whether the targets of HOLD have stood still for long enough to switch torque off."""
        if self.mode is not Mode.HOLD or not all(x.at_rest for x in self._limbs if x.driven):
            self._rest_since = None
            return False
        if self._rest_since is None:
            self._rest_since = now_ns
        return now_ns - self._rest_since >= _SETTLE_NS

    def _stop(self, requests: int, now_ns: int) -> None:
        """Stop as configured: park or hold, then torque off; a second request: off at once."""
        if not self.stopping:
            self._begin_stop(now_ns)
        moving = self.mode is Mode.PARK or (self.mode is Mode.HOLD and not self._at_rest(now_ns))
        if requests == 1 and moving and now_ns < self._stop_by:
            return
        if self.mode is not Mode.IDLE and (requests > 1 or self._at_stop.torque_off):
            why = self._release_all() and self._release_all()
            if self.mode is not Mode.FAULT:
                self.mode = Mode.IDLE
            self.say(f"stopped, but {why}" if why else "stopped: torque is off")
        self.finished = True

    def _begin_stop(self, now_ns: int) -> None:
        self.stopping = True
        self._stop_by = now_ns + round(self._at_stop.park_timeout_s * 1e9)
        self.results.settle("robotd is stopping")
        park = self._at_stop.action == "park" and self._sources.can_park
        if self.mode in (Mode.HOLD, Mode.POLICY):
            event = Event.PARK if park else Event.HOLD
            self._happens(event, now_ns, "parking, then stopping" if park else "stopping")
