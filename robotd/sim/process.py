"""The simulator process of the daemon: `python -m robotd.sim --config config.json --fd ARM=N ...`.

Serves every arm whose port is "sim" on an inherited socket (`--fd arm=3`) or a pseudo-terminal
(`--link arm=PATH`), steps the physics in real time, answers the control channel (`ipc/simlink`),
and has the camera process draw. It ends with SIGTERM or SIGINT, or when nobody is left to simulate
for.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robotd.config import ArmConfig, Config, load
from robotd.errors import ConfigError, RobotdError, SimError
from robotd.ipc.say import say
from robotd.ipc.simlink import (
    SOCKET_NAME,
    Answer,
    Hand,
    Inject,
    Query,
    Request,
    Reset,
    SimLinkServer,
)
from robotd.sim.bus import SimBus
from robotd.sim.physics import Physics
from robotd.sim.scene import SCENE_NAME, SceneWriter
from robotd.sim.serve import (
    BusServer,
    Line,
    PtyLine,
    SocketLine,
    be_on_time,
    until_signalled,
)
from robotd.sim.tasks import Lift, Reach, make_task

SNAPSHOT_NS = 4_000_000  # time between two published states: four for every picture at 60 Hz
_BELOW_CONTROL = 5  # real-time priorities
_CAMERAS_BACK_OFF_S = 1.0
_USAGE_ERROR = 2  # exit code of a process that can never work so
_PR_SET_PDEATHSIG = 1


@dataclass
class SimArm:
    """One simulated arm: its world, its bus, its line to the client."""

    config: ArmConfig
    physics: Physics
    task: Lift | Reach
    bus: SimBus
    line: Line
    seed: int = 0
    begun_s: float = 0.0


class SimProcess:
    """Everything the simulator process does, except for reading its command line."""

    def __init__(self, path: Path, config: Config, lines: dict[str, Line]) -> None:
        """`lines` by arm id. Raises SimError for faults or scenes that are not there."""
        if config.sim is None:
            raise ConfigError(f"{path}: there is no [sim] section")
        self._path = path
        self.config = config
        self._sim = config.sim
        self.arms = [self._arm(arm, lines) for arm in config.arms if arm.port == "sim"]
        if not self.arms:
            raise ConfigError(f'{path}: no arm has port = "sim": nothing to simulate')
        self._check_cameras()
        self._server = BusServer()
        for arm in self.arms:
            self._server.add(arm.bus, arm.line)
        first = self.arms[0].physics
        snapshot = first.snapshot()
        self._scene = SceneWriter(config.runtime_dir / SCENE_NAME, len(snapshot))
        self._scene.publish(snapshot, time.monotonic_ns())
        self._published_ns = 0
        self._cameras: subprocess.Popen[bytes] | None = None
        self._cameras_at = 0.0
        self._parent = os.getppid()
        self._watch_cameras()  # before anybody asks: starting a process can hold up the bus
        self._link = SimLinkServer(config.runtime_dir / SOCKET_NAME)
        self._server.also(self._link.descriptors, self._serve)
        self._server.after_step(self._after_step)

    def _arm(self, config: ArmConfig, lines: dict[str, Line]) -> SimArm:
        if config.id not in lines:
            raise ConfigError(f"arm {config.id}: neither --fd nor --link for it")
        physics = Physics(config.model, self._sim.task, config.role)
        task = make_task(physics)
        task.reset(self._sim.seed)
        bus = SimBus(
            config.model,
            config.role,
            physics,
            baud_time=self._sim.baud_time,
            seed=self._sim.seed,
        )
        return SimArm(config, physics, task, bus, lines[config.id], self._sim.seed)

    def _check_cameras(self) -> None:
        model = self.arms[0].physics.model
        known = [model.camera(index).name for index in range(model.ncam)]
        for camera in self.config.cameras:
            if camera.driver == "sim" and camera.name not in known:
                raise ConfigError(
                    f"{self._path}: no simulated camera {camera.name!r}; "
                    f"there are: {', '.join(known)}"
                )

    def run(self) -> None:
        """Serve until stopped or abandoned. SimError when the cameras cannot be drawn."""
        now = time.monotonic_ns()
        for arm in self.arms:
            arm.bus.advance(now)
            if self._sim.faults:
                arm.bus.inject(self._sim.faults, now)
        gc.freeze()  # a collection that walks every import would delay replies
        self._server.run()

    def stop(self) -> None:
        """Let `run` return."""
        self._server.stop()

    def close(self) -> None:
        """Close everything; the camera process too."""
        if self._cameras is not None:
            self._cameras.terminate()
            try:
                self._cameras.wait(2.0)
            except subprocess.TimeoutExpired:
                self._cameras.kill()
                self._cameras.wait()
        self._link.close()
        self._scene.close()
        for arm in self.arms:
            arm.line.close()

    # -- between requests

    def _after_step(self, now_ns: int) -> None:
        if now_ns - self._published_ns < SNAPSHOT_NS:
            return
        self._published_ns = now_ns
        self._scene.publish(self.arms[0].physics.snapshot(), now_ns)
        self._watch_cameras()
        if self._abandoned():
            self.stop()

    def _abandoned(self) -> bool:
        """Whether nobody is left to simulate for, and nobody can come back.

        A socket whose other end was closed stays so; a pseudo-terminal can be opened again as long
        as the daemon lives.
        """
        if any(arm.line.descriptor() >= 0 for arm in self.arms):
            return False
        orphan = os.getppid() != self._parent
        return all(isinstance(arm.line, SocketLine) or orphan for arm in self.arms)

    def _watch_cameras(self) -> None:
        if not any(camera.driver == "sim" for camera in self.config.cameras):
            return
        if self._cameras is not None and (code := self._cameras.poll()) is not None:
            self._cameras = None
            if code == _USAGE_ERROR:
                raise SimError("the simulated cameras cannot be drawn here")  # they said why
            say("sim", f"cameras ended with code {code}; they start again")
            self._cameras_at = time.monotonic() + _CAMERAS_BACK_OFF_S
        if self._cameras is None and time.monotonic() >= self._cameras_at:
            self._cameras = start_cameras(self._path, self.arms[0].config.model)

    # -- control channel

    def _serve(self, descriptor: int) -> None:
        got = self._link.serve(descriptor)
        if got is None:
            return
        peer, request = got
        try:
            answer = self._answer(request)
        except SimError as error:
            answer = Answer(error=str(error))
        self._link.answer(peer, answer)

    def _answer(self, request: Request) -> Answer:
        now = time.monotonic_ns()
        for arm in self.arms:
            arm.bus.advance(now)
        if isinstance(request, Reset):
            for arm in self.arms:
                reset(arm, request.seed)
        elif isinstance(request, Inject):
            for arm in self._chosen(request.arm):
                arm.bus.inject(request.faults, now)
        elif isinstance(request, Hand):
            for arm in self._chosen(request.arm):
                if any(joint not in range(len(arm.bus.joints)) for joint in request.joints):
                    raise SimError(f"hand: joints are 0 to 5, not {sorted(request.joints)}")
                arm.physics.hand(request.joints or None)
        return self._state(now, isinstance(request, Query) and request.state)

    def _chosen(self, arm_id: str) -> list[SimArm]:
        chosen = [arm for arm in self.arms if arm_id in ("", arm.config.id)]
        if not chosen:
            known = ", ".join(arm.config.id for arm in self.arms)
            raise SimError(f"no simulated arm {arm_id!r}; there are: {known}")
        return chosen

    def _state(self, now_ns: int, whole: bool) -> Answer:
        """How the first arm's task stands."""
        arm = self.arms[0]
        task = arm.task
        elapsed_s = arm.physics.time_s - arm.begun_s
        return Answer(
            time_ns=now_ns,
            seed=arm.seed,
            success=task.success,
            success_ns=round((task.success_s - arm.begun_s) * 1e9) if task.success else 0,
            elapsed_ns=max(0, round(elapsed_s * 1e9)),
            info={**task.info(), **info(self.arms)},
            state=[float(v) for v in arm.physics.state().integration] if whole else [],
        )


def reset(arm: SimArm, seed: int) -> None:
    """New episode: scene and start pose of this seed; servos rested, and content where they are.

    Torque stays as it is. A servo with torque on holds the new pose until its client, which knows
    nothing of this, writes the next goal: reset an arm while it is disarmed.
    """
    arm.task.reset(seed)
    arm.seed = seed
    arm.begun_s = arm.physics.time_s
    arm.bus.rest()


def info(arms: list[SimArm]) -> dict[str, Any]:
    """What else may interest a tool: the arms' true pose, servos' state, faults injected."""
    return {
        arm.config.id: {
            "joints": [round(v, 4) for v in arm.physics.measured_norm()],
            "torque": [servo.torque_on for servo in arm.bus.servos],
            "temperature_c": [round(servo.temperature_c, 1) for servo in arm.bus.servos],
            "load": [round(servo.load, 3) for servo in arm.bus.servos],
            "injected": dict(arm.bus.faults.injected),
        }
        for arm in arms
    }


def start_cameras(path: Path, model: str) -> subprocess.Popen[bytes]:
    """Start the camera process; the kernel ends it with this one."""
    libc = ctypes.CDLL(None)

    def follow() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    argv = [sys.executable, "-m", "robotd.sim.cameras", "--config", str(path), "--model", model]
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, preexec_fn=follow)


def _assignments(values: list[str], what: str) -> dict[str, str]:
    found = {}
    for value in values:
        arm_id, equals, rest = value.partition("=")
        if not equals or not arm_id or not rest:
            raise ConfigError(f"{what} {value!r}: write {what} ARM=...")
        found[arm_id] = rest
    return found


def open_lines(descriptors: list[str], links: list[str]) -> dict[str, Line]:
    """Lines by arm id. ConfigError for an argument that is malformed or no socket."""
    lines: dict[str, Line] = {}
    for arm_id, text in _assignments(descriptors, "--fd").items():
        try:
            lines[arm_id] = SocketLine(int(text))
        except (ValueError, OSError) as error:
            raise ConfigError(f"--fd {arm_id}={text}: no inherited socket") from error
    for arm_id, text in _assignments(links, "--link").items():
        lines[arm_id] = PtyLine(Path(text))
    return lines


def main(argv: list[str] | None = None) -> int:
    """Entry point of the process; exit code 2 with one line when it cannot work."""
    parser = argparse.ArgumentParser(prog="robotd.sim")
    parser.add_argument("--config", type=Path, required=True, help="resolved configuration")
    parser.add_argument("--fd", action="append", default=[], metavar="ARM=N")
    parser.add_argument("--link", action="append", default=[], metavar="ARM=PATH")
    arguments = parser.parse_args(argv)
    until_signalled(lambda: sys.exit(0))  # until there is something to stop
    try:
        config = load(arguments.config)
        lines = open_lines(arguments.fd, arguments.link)
        process = SimProcess(arguments.config, config, lines)
    except RobotdError as error:
        print(f"robotd sim: {error}", file=sys.stderr)
        return _USAGE_ERROR
    until_signalled(process.stop)
    be_on_time(config.control.priority - _BELOW_CONTROL)
    try:
        process.run()
    except RobotdError as error:
        print(f"robotd sim: {error}", file=sys.stderr)
        return _USAGE_ERROR
    finally:
        process.close()
    return 0
