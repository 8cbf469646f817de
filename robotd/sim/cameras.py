"""The camera process of the simulator: `python -m robotd.sim.cameras --config config.json`.

Draws every camera with driver "sim" at its rate from the newest state of the physics and publishes
the pictures as frames. It is a process of its own, so that drawing never delays the bus. It needs
nothing from the simulator but the scene file, and ends with it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from robotd.config import CameraConfig, Config, load
from robotd.errors import RobotdError
from robotd.ipc.frames import FRAMES_DIR, Encoding, FrameWriter
from robotd.sim.render import Renderer
from robotd.sim.scene import SCENE_NAME, SceneReader

BLANK = 128  # grey level of blanked pictures
_NICENESS = 5


class SimCamera:
    """One simulated camera: its ring, its rate, the snapshot it showed last."""

    def __init__(self, config: CameraConfig, runtime_dir: Path, blank: bool) -> None:
        self.config = config
        self.period_ns = round(1e9 / config.fps)
        self.due_ns = time.monotonic_ns()
        size = config.width * config.height * 3
        self._blank = bytes([BLANK]) * size if blank else None
        self._frames = FrameWriter(runtime_dir / FRAMES_DIR / config.name, size)

    def shoot(self, renderer: Renderer, snapshot: bytes, time_ns: int) -> None:
        """Draw and publish one picture of a snapshot taken at `time_ns`."""
        width, height = self.config.width, self.config.height
        if self._blank is None:
            renderer.load(snapshot)
            data = renderer.render(self.config.name, width, height).tobytes()
        else:
            data = self._blank
        self._frames.publish(data, time_ns, width, height, Encoding.RGB)

    def reschedule(self, now_ns: int) -> None:
        """On to the next picture; those whose time has passed are skipped."""
        missed = max(0, (now_ns - self.due_ns) // self.period_ns)
        self.due_ns += (missed + 1) * self.period_ns

    def close(self) -> None:
        """Close the ring."""
        self._frames.close()


class CameraProcess:
    """All simulated cameras of a configuration."""

    def __init__(self, config: Config, model: str) -> None:
        """Raises SimError for a camera that the scene does not have, or where EGL is missing."""
        if config.sim is None:
            raise RobotdError("there is no [sim] section: nothing to draw")
        self._renderer = Renderer(model, config.sim.task, config.sim.renderer)
        self._scene = SceneReader(config.runtime_dir / SCENE_NAME)
        chosen = [camera for camera in config.cameras if camera.driver == "sim"]
        for camera in chosen:
            self._renderer.render(camera.name, 16, 16)  # refuses a camera that is not there
        blank = config.sim.blank_images
        self._cameras = [SimCamera(camera, config.runtime_dir, blank) for camera in chosen]
        self._stopped = False

    def stop(self) -> None:
        """Let `run` return."""
        self._stopped = True

    def run(self) -> None:
        """Draw until stopped, or until the simulator has ended."""
        parent = os.getppid()
        while not self._stopped and os.getppid() == parent:
            camera = min(self._cameras, key=lambda one: one.due_ns)
            wait_ns = camera.due_ns - time.monotonic_ns()
            if wait_ns > 0:
                time.sleep(min(wait_ns * 1e-9, 0.2))
                continue
            newest = self._scene.latest()
            if newest is not None:
                camera.shoot(self._renderer, newest[1], newest[0])
            camera.reschedule(time.monotonic_ns())

    def close(self) -> None:
        """Close rings and renderer."""
        for camera in self._cameras:
            camera.close()
        self._renderer.close()
        self._scene.close()


def main() -> int:
    """Entry point of the process; exit code 2 with one line when it cannot work."""
    parser = argparse.ArgumentParser(prog="robotd.sim.cameras")
    parser.add_argument("--config", type=Path, required=True, help="resolved configuration")
    parser.add_argument("--model", required=True, help="arm whose scene is drawn")
    arguments = parser.parse_args()
    os.nice(_NICENESS)
    try:
        process = CameraProcess(load(arguments.config), arguments.model)
    except RobotdError as error:
        print(f"robotd sim cameras: {error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the simulator says when it is over
    signal.signal(signal.SIGTERM, lambda number, frame: process.stop())
    process.run()
    process.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
