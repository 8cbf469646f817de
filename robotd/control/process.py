"""The control process: builds everything before the first tick, then ticks until it is stopped.

    python -m robotd.control --config RESOLVED.json [--fd ARM=N ...] [--port ARM=PATH ...]

Exit code 0 after a stop by signal, 2 when it cannot work, with one line on stderr that says why.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from robotd.bus.arm import Arm
from robotd.bus.blocks import detail_for
from robotd.bus.calibration import Calibration
from robotd.bus.port import Port, SerialPort
from robotd.config import ArmConfig, Config, load
from robotd.control import realtime
from robotd.control.clock import Clock, MonotonicClock, Pacer
from robotd.control.loop import ControlLoop
from robotd.errors import ConfigError, RobotdError
from robotd.ipc.inbox import SOCKET_NAME, Inbox
from robotd.ipc.ring import RING_NAME, Layout, RingWriter
from robotd.ipc.say import say

SIM = "sim"  # `port` of a simulated arm
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def build_arm(
    config: ArmConfig,
    port: Port,
    period_ns: int,
    clock: Callable[[], int] = time.monotonic_ns,
) -> Arm:
    """One arm on an open port; reads as much each tick as the period allows.

    Raises CalibrationError.
    """
    signed = config.gripper_range != "0..100"
    calibration = Calibration.load(config.calibration, config.model, signed)
    return Arm(
        config.id,
        config.model,
        config.role,
        port,
        calibration,
        clock,
        baud=config.baud,
        detail=detail_for(calibration.protocol, config.baud, period_ns),
    )


def open_port(config: ArmConfig, fds: Mapping[str, int], paths: Mapping[str, str]) -> SerialPort:
    """The arm's port: an inherited descriptor, a path given in its place, or its own path."""
    if config.id in fds:
        return SerialPort.from_fd(fds[config.id], f"simulated bus of {config.id}")
    path = paths.get(config.id, config.port)
    if path == SIM:
        raise ConfigError(
            f"arm {config.id} is simulated: its bus must be given with --fd or --port"
        )
    return SerialPort.open(path, config.baud)


def ring_layout(config: Config, arms: Sequence[Arm], pid: int = 0) -> Layout:
    """What the ring of this configuration holds."""
    names = tuple(
        f"{arm_config.id}.{joint}"
        for arm_config, arm in zip(config.arms, arms, strict=True)
        for joint in arm.joints
    )
    slots = config.control.ring_seconds * config.control.rate_hz
    return Layout(names, config.control.period_ns, slots, pid)


def run(loop: ControlLoop, clock: Clock, period_ns: int) -> None:
    """Tick on a fixed grid of deadlines until the loop is finished."""
    pacer = Pacer(clock, period_ns)
    while not loop.finished:
        deadline = pacer.wait()
        loop.missed_ticks = pacer.missed
        loop.tick(deadline)


def main(argv: Sequence[str] | None = None) -> int:
    """The process. Nothing slow is left for the first tick."""
    on_signal(lambda: sys.exit(0))  # until there is something to stop
    try:
        arguments = _parse(argv)
        with ExitStack() as stack:
            loop, clock, config = _build(arguments, stack)
            on_signal(loop.request_stop)
            run(loop, clock, config.control.period_ns)
    except RobotdError as error:
        for line in str(error).splitlines():
            print(f"robotd control: {line}", file=sys.stderr)
        return 2
    return 0


def _build(arguments: argparse.Namespace, stack: ExitStack) -> tuple[ControlLoop, Clock, Config]:
    """Everything before the first tick: ports, servos, ring, inbox, real-time rights."""
    config = load(arguments.config)
    arms = []
    for arm_config in config.arms:
        port = open_port(arm_config, dict(arguments.fd), dict(arguments.port))
        stack.callback(port.close)
        arms.append(build_arm(arm_config, port, config.control.period_ns))
    clock = MonotonicClock()
    inbox = Inbox(config.runtime_dir / SOCKET_NAME)
    stack.callback(inbox.close)
    layout = ring_layout(config, arms, os.getpid())
    ring = RingWriter(config.runtime_dir / RING_NAME, layout)
    stack.callback(ring.close)
    degraded = realtime.apply(config.control)  # once all memory that is needed is there
    if degraded:
        text = f"NO REAL TIME: {realtime.explain(degraded)}"
        say("control", f"{text}; motion may stutter when the machine is busy")
    loop = ControlLoop(config, arms, ring, inbox, clock, degraded)
    loop.start()
    return loop, clock, config


def on_signal(act: Callable[[], None]) -> None:
    """What SIGTERM and SIGINT do from now on."""

    def handler(number: int, frame: FrameType | None) -> None:
        act()

    for number in _SIGNALS:
        signal.signal(number, handler)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("robotd.control", description="The control process.")
    parser.add_argument("--config", type=Path, required=True, help="resolved configuration (JSON)")
    parser.add_argument(
        "--fd", type=_descriptor, action="append", default=[], metavar="ARM=N",
        help="the arm's bus is this inherited descriptor",
    )  # fmt: skip
    parser.add_argument(
        "--port", type=_path, action="append", default=[], metavar="ARM=PATH",
        help="the arm's bus is at this path, in place of the configuration's",
    )  # fmt: skip
    return parser.parse_args(argv)


def _path(text: str) -> tuple[str, str]:
    arm, sign, value = text.partition("=")
    if not (arm and sign and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not ARM=VALUE")
    return arm, value


def _descriptor(text: str) -> tuple[str, int]:
    arm, value = _path(text)
    if not value.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not ARM=NUMBER")
    return arm, int(value)
