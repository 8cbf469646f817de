"""`robotd sim bus`: one simulated arm on a pseudo-terminal, for anybody's client.

While it runs it obeys lines on its standard input (see CONSOLE); each is answered by one line,
"ok ..." or "error: ...". A terminal is read only in the foreground.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TextIO

from robotd.errors import SimError
from robotd.sim.arms import Units
from robotd.sim.bus import SimBus, ideal_mechanism
from robotd.sim.faults import parse_faults
from robotd.sim.mechanism import IdealMechanism, Mechanism
from robotd.sim.serve import BusServer, PtyLine, be_on_time, until_signalled

CONSOLE = """\
faults TEXT          inject faults, e.g. drop:p=0.01,mute:id=3:at=2s; without TEXT: end all
only JOINT ...       leave only these servos plugged into the chain
all                  plug all servos in
hand JOINT=X ...     a hand pulls unpowered joints to normalised positions; without: lets go
state                positions, torque, temperatures, faults injected, as JSON
quit                 end
"""
Physics = Literal["mujoco", "ideal"]
_STDIN = 0
_PRIORITY = 40  # below that of the control loop
_CHUNK = 4096


class Console:
    """Commands from a text stream, carried out on a bus. Pure but for what they do to the bus."""

    def __init__(self, bus: SimBus, stop: Callable[[], None]) -> None:
        self._bus = bus
        self._stop = stop
        self._units = Units(bus.arm.model, bus.arm.role)
        self._commands: dict[str, Callable[[list[str], int], str]] = {
            "faults": self._faults,
            "only": self._only,
            "all": self._all,
            "hand": self._hand,
            "state": self._state,
            "quit": self._quit,
        }

    def obey(self, line: str, now_ns: int) -> str:
        """The answer to one line."""
        words = line.split()
        if not words:
            return "ok"
        command = self._commands.get(words[0])
        if command is None:
            return f"error: no command {words[0]!r}; there are: {', '.join(self._commands)}"
        try:
            return f"ok {command(words[1:], now_ns)}".rstrip()
        except SimError as error:
            return f"error: {error}"

    def _faults(self, words: list[str], now_ns: int) -> str:
        self._bus.inject("".join(words), now_ns)
        return ""

    def _only(self, words: list[str], now_ns: int) -> str:
        self._bus.connect_only(words)
        return ""

    def _all(self, words: list[str], now_ns: int) -> str:
        self._bus.connect_only(None)
        return ""

    def _hand(self, words: list[str], now_ns: int) -> str:
        targets = {}
        for word in words:
            joint, _, text = word.partition("=")
            try:
                index = self._bus.joints.index(joint)
                targets[index] = self._units.rad(index, float(text))
            except ValueError:
                joints = ", ".join(self._bus.joints)
                raise SimError(f"hand {word!r}: write JOINT=X; joints are {joints}") from None
        hand = getattr(self._bus.mechanism, "hand", None)
        if hand is None:
            raise SimError("this mechanism cannot be pulled by hand")
        hand(targets or None)
        return ""

    def _state(self, words: list[str], now_ns: int) -> str:
        bus = self._bus
        places = [bus.mechanism.sense(joint).position_rad for joint in range(len(bus.joints))]
        shown = {
            "joints": [round(v, 3) for v in self._units.all_norm(places)],
            "ids": [servo.id for servo in bus.servos],
            "baud": [servo.baud for servo in bus.servos],
            "torque": [servo.torque_on for servo in bus.servos],
            "temperature_c": [round(servo.temperature_c, 1) for servo in bus.servos],
            "load": [round(servo.load, 3) for servo in bus.servos],
            "injected": dict(bus.faults.injected),
        }
        return json.dumps(shown)

    def _quit(self, words: list[str], now_ns: int) -> str:
        self._stop()
        return ""


class _Input:
    """Lines from a descriptor that is polled with the rest."""

    def __init__(self, fd: int, console: Console, out: TextIO) -> None:
        self._fd = fd
        self._console = console
        self._out = out
        self._rest = b""
        self._open = True

    def descriptors(self) -> list[int]:
        """The descriptor, while it may be read."""
        return [self._fd] if self._open and not self._in_background() else []

    def _in_background(self) -> bool:
        """Reading a terminal from the background would stop the process."""
        try:
            return os.isatty(self._fd) and os.tcgetpgrp(self._fd) != os.getpgrp()
        except OSError:
            return False  # a terminal, but not the one that controls this process

    def serve(self, descriptor: int) -> None:
        """Read what is there and obey whole lines."""
        data = os.read(descriptor, _CHUNK)
        self._open = bool(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            answer = self._console.obey(line.decode(errors="replace"), time.monotonic_ns())
            print(answer, file=self._out, flush=True)


def make_mechanism(model: str, role: str, physics: Physics) -> Mechanism:
    """The world behind the servos. Raises SimError where MuJoCo is asked for and missing."""
    if physics == "ideal":
        from robotd.sim.arms import arm

        mechanism: IdealMechanism = ideal_mechanism(arm(model, role))
        return mechanism
    try:
        from robotd.sim.physics import Physics as MujocoPhysics
    except ImportError as error:
        raise SimError(
            f"MuJoCo is not installed ({error}); install robotd[sim], or use --physics ideal"
        ) from error
    return MujocoPhysics(model, "lift", role)


def serve_bus_command(
    model: str,
    role: str = "follower",
    link: Path | None = None,
    *,
    baud_time: bool = False,
    faults: str = "",
    physics: Physics = "mujoco",
    factory: bool = False,
    seed: int = 0,
    out: TextIO | None = None,
) -> None:
    """Serve one simulated arm on a pseudo-terminal until SIGINT, SIGTERM or `quit`.

    Prints the path to open, then hints, each on its line. Raises SimError for an arm, a fault or a
    link that cannot be.
    """
    out = out if out is not None else sys.stdout
    parse_faults(faults)
    try:
        mechanism = make_mechanism(model, role, physics)
    except KeyError:
        raise SimError(f"no simulated arm {model} {role}; there are: so101, koch") from None
    bus = SimBus(model, role, mechanism, baud_time=baud_time, factory=factory, seed=seed)
    server = BusServer()
    now = time.monotonic_ns()
    bus.advance(now)
    if faults:
        bus.inject(faults, now)
    line = PtyLine(link)
    try:
        until_signalled(server.stop)
        server.add(bus, line)
        console = _Input(_STDIN, Console(bus, server.stop), out)
        server.also(console.descriptors, console.serve)
        print(line.path, file=out)
        for hint in _hints(bus, factory):
            print(f"# {hint}", file=out)
        out.flush()
        gc.freeze()
        be_on_time(_PRIORITY)
        server.run()
    finally:
        line.close()


def _hints(bus: SimBus, factory: bool) -> list[str]:
    rates = sorted({servo.baud for servo in bus.servos})
    ids = sorted({servo.id for servo in bus.servos})
    servos = ", ".join(dict.fromkeys(servo.model.name for servo in bus.servos))
    state = "as delivered; connect one at a time with: only JOINT" if factory else "calibrated"
    return [
        f"{bus.arm.model} {bus.arm.role}: {servos}; ids {_range(ids)} at {rates[0]} baud, {state}",
        *CONSOLE.splitlines(),
    ]


def _range(ids: list[int]) -> str:
    return str(ids[0]) if len(ids) == 1 else f"{ids[0]} to {ids[-1]}"
