"""Cameras: one thread each, so that a slow, silent or hung one holds up nothing else.

Every camera knows its age, its rate, how often it was opened again and why. Frames are published
for other readers (recorder, view) in the runtime directory.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robotd.config import CameraConfig
from robotd.errors import CameraError, IpcError
from robotd.ipc.frames import FRAMES_DIR, Frame, FrameWriter
from robotd.ipc.lifetime import prefer
from robotd.observer.observation import Picture, picture
from robotd.observer.sources import Source, make_source, require_whole
from robotd.policy.bundle import ImageInput

_LONGEST_BACK_OFF_S = 10.0
_STUCK_S = 2.0  # inside one call of the driver for at least this long
_RATE_WINDOW = 64  # frames

log = logging.getLogger("robotd.observer")


class _Newest:
    """The newest frame, decoded for the policy when first asked for."""

    def __init__(self, frame: Frame, wanted: ImageInput | None) -> None:
        self.frame = frame
        self._wanted = wanted
        self._picture: Picture | None = None

    def picture(self) -> Picture | None:
        """At the size that the policy takes; None when it takes none. May raise CameraError."""
        if self._picture is None and self._wanted is not None:
            self._picture = picture(self.frame, self._wanted)
        return self._picture


@dataclass(frozen=True, slots=True)
class CameraStatus:
    """What is known of a camera. `state`: starting | live | silent | stuck | failed."""

    state: str
    age_ms: float | None  # of the newest frame; None before the first
    fps: float  # achieved
    frames: int
    reopens: int
    bad_frames: int  # came, but held no picture
    error: str  # the last one; empty while all is well
    notice: str  # what is done to its pictures

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {name: getattr(self, name) for name in self.__slots__}


class Camera:
    """One camera and its thread."""

    def __init__(
        self,
        config: CameraConfig,
        source: Source,
        stop: threading.Event,
        wanted: ImageInput | None = None,
        publish_to: Path | None = None,
    ) -> None:
        """`wanted`: the policy's size; `publish_to`: frame file to write, None for no file."""
        self.config = config
        self.eager = False  # decode each frame as it comes, so that an observation need not
        self._source = source
        self._stop = stop
        self._wanted = wanted
        self._publisher = None if publish_to is None else _Publisher(publish_to, config)
        self._silence_ns = round(max(config.reopen_s, 2.5 / config.fps) * 1e9)
        self._newest: _Newest | None = None
        self._times: deque[int] = deque(maxlen=_RATE_WINDOW)
        self._frames = self._opened = self._bad = 0
        self._error = self._notice = ""
        self._busy_since_ns = 0  # inside the driver since; 0: not inside
        self._heard_ns = 0
        self._thread = threading.Thread(target=self._run, name=f"camera-{config.name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread's end after `stop` was set; False when it is stuck in its driver."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def picture(self) -> Picture | None:
        """The newest picture for the policy, or None before the first."""
        newest = self._newest
        if newest is None:
            return None
        try:
            return newest.picture()
        except CameraError as error:
            self._spoiled(str(error))
            self._newest = None
            return None

    def status(self, now_ns: int) -> CameraStatus:
        """How the camera stands at this time."""
        newest, busy = self._newest, self._busy_since_ns
        age_ns = None if newest is None else max(0, now_ns - newest.frame.captured_ns)
        error = self._error
        if busy and now_ns - busy > max(_STUCK_S * 1e9, 2 * self._silence_ns):
            state = "stuck"
            error = f"its driver has not returned for {(now_ns - busy) / 1e9:.0f} s"
        elif age_ns is not None and age_ns <= self._silence_ns:
            state = "live"
        elif newest is not None:
            state = "silent"
        else:
            state = "failed" if error else "starting"
        times = list(self._times)
        span_ns = now_ns - times[0] if times else 0
        return CameraStatus(
            state=state,
            age_ms=None if age_ns is None else round(age_ns / 1e6, 1),
            fps=round(len(times) * 1e9 / span_ns, 1) if span_ns > 0 else 0.0,
            frames=self._frames,
            reopens=max(0, self._opened - 1),
            bad_frames=self._bad,
            error=error,
            notice=self._notice,
        )

    def _run(self) -> None:
        prefer(0)  # decoding may wait; answers of the worker may not
        back_off_s = self.config.reopen_s
        while not self._stop.is_set():
            before = self._frames
            try:
                self._session()
            except CameraError as error:
                self._tell(str(error))
            except Exception as error:  # a driver's defect must not end the thread unseen
                self._tell(f"defect in the driver: {error!r}")
            finally:
                self._busy_since_ns = 0
                self._source.close()
            back_off_s = (
                self.config.reopen_s
                if self._frames > before
                else min(2 * back_off_s, _LONGEST_BACK_OFF_S)
            )
            self._stop.wait(back_off_s)
        if self._publisher is not None:
            self._publisher.close()

    def _session(self) -> None:
        """Open and read until it fails or falls silent: CameraError."""
        self._opened += 1
        self._busy_since_ns = time.monotonic_ns()
        self._source.open()
        self._heard_ns = time.monotonic_ns()
        while not self._stop.is_set():
            self._busy_since_ns = time.monotonic_ns()
            frame = self._source.read()
            now_ns = time.monotonic_ns()
            self._busy_since_ns = 0
            if frame is not None and self._take(frame, now_ns):
                self._heard_ns = now_ns
            elif now_ns - self._heard_ns > self._silence_ns and not self._stop.is_set():
                raise CameraError(f"no picture for {self._silence_ns / 1e9:g} s; opened again")

    def _take(self, frame: Frame, now_ns: int) -> bool:
        """Publish a frame, make it the newest one, and count it; False when it is no picture."""
        newest = _Newest(frame, self._wanted)
        try:
            require_whole(frame)
            if self.eager:
                newest.picture()
        except CameraError as error:
            self._spoiled(str(error))
            return False
        if self._publisher is not None:
            try:
                self._publisher.publish(frame)
            except IpcError as error:
                self._tell(f"cannot be published: {error}")
        if self._frames == 0 or self._newest is None:
            self._notice_size(frame)
        self._frames += 1
        self._times.append(now_ns)
        self._newest = newest
        if self._publisher is None or self._publisher.works:
            self._error = ""
        return True

    def _notice_size(self, frame: Frame) -> None:
        wanted = self._wanted
        if wanted is None or (frame.width, frame.height) == (wanted.width, wanted.height):
            return
        self._notice = (
            f"{frame.width}x{frame.height} is cropped and resized to "
            f"{wanted.width}x{wanted.height} for the policy"
        )
        log.info("camera %s: %s", self.config.name, self._notice)

    def _spoiled(self, text: str) -> None:
        self._bad += 1
        self._error = text

    def _tell(self, text: str) -> None:
        """Remember an error; log it when it is a new one."""
        if text != self._error:
            log.warning("camera %s: %s", self.config.name, text)
        self._error = text


class _Publisher:
    """Writes a camera's frames to its frame file, which it makes anew when frames grow."""

    def __init__(self, path: Path, config: CameraConfig) -> None:
        self._path = path
        self._capacity = config.width * config.height * 3
        self._writer: FrameWriter | None = None
        self.works = True

    def publish(self, frame: Frame) -> None:
        """Write one frame; IpcError when the file cannot be made."""
        self.works = False
        if self._writer is None or len(frame.data) > self._capacity:
            self.close()
            self._capacity = max(self._capacity, len(frame.data))
            self._writer = FrameWriter(self._path, self._capacity)
        self._writer.publish(
            frame.data, frame.captured_ns, frame.width, frame.height, frame.encoding
        )
        self.works = True

    def close(self) -> None:
        """Unmap the file; readers keep the last frame."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class Cameras:
    """All cameras of the robot."""

    def __init__(
        self, configs: Sequence[CameraConfig], images: Sequence[ImageInput], runtime_dir: Path
    ) -> None:
        """`images` are the policy's; cameras that it does not use are published only."""
        self._stop = threading.Event()
        wanted = {image.camera: image for image in images}
        self.all = {
            config.name: Camera(
                config,
                make_source(config, runtime_dir, self._stop),
                self._stop,
                wanted.get(config.name),
                None if config.driver == "sim" else runtime_dir / FRAMES_DIR / config.name,
            )
            for config in configs
        }
        self._used = [name for name in self.all if name in wanted]

    def start(self) -> None:
        """Start every camera's thread."""
        for camera in self.all.values():
            camera.start()

    def stop(self, timeout_s: float = 1.0) -> None:
        """Stop the threads; one that is stuck in its driver ends with the process."""
        self._stop.set()
        end = time.monotonic() + timeout_s
        for camera in self.all.values():
            camera.join(max(0.0, end - time.monotonic()))

    def set_eager(self, eager: bool) -> None:
        """Decode frames as they come (the policy is running), or only when asked for."""
        for camera in self.all.values():
            camera.eager = eager

    def pictures(self) -> dict[str, Picture]:
        """The newest picture of every camera that the policy uses and that has given one."""
        found = {name: self.all[name].picture() for name in self._used}
        return {name: shown for name, shown in found.items() if shown is not None}

    def status(self, now_ns: int) -> dict[str, CameraStatus]:
        """How each camera stands."""
        return {name: camera.status(now_ns) for name, camera in self.all.items()}
