"""Camera drivers: how a picture is got from a device, the simulator, or a file.

A source is used by one thread only (robotd.observer.cameras). Any of its calls may block there,
even for ever, without holding up anything else.
"""

import os
import threading
import time
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt

from robotd.config import CameraConfig
from robotd.errors import CameraError, IpcError, WireError
from robotd.ipc.frames import FRAMES_DIR, Encoding, Frame, FrameReader
from robotd.policy.images import jpeg_size

_WAIT_S = 0.2  # longest wait inside one read of the simulator's frames
_POLL_S = 0.002
_START_S = 1.5  # below the time after which a driver counts as stuck
_START_POLL_S = 0.02
_EARLY = 0.7  # part of a frame's period that is slept before polling begins
_OLDEST_STAMP_NS = 1_000_000_000  # a driver's time stamp older than this is not believed
_END_OF_JPEG = b"\xff\xd9"

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class Source(Protocol):
    """One camera's pictures. CameraError from any call: close, wait, open again."""

    def open(self) -> None:
        """Get ready to read."""
        ...

    def read(self) -> Frame | None:
        """The next frame (its sequence is not set), or None when none came yet."""
        ...

    def close(self) -> None:
        """Let go of the device; also after a failed `open`."""
        ...


def make_source(config: CameraConfig, runtime_dir: Path, stop: threading.Event) -> Source:
    """The driver that the configuration names; waits inside it end when `stop` is set."""
    if config.driver == "sim":
        return SimSource(runtime_dir / FRAMES_DIR / config.name, config.fps, stop)
    if config.driver == "file":
        return FileSource(Path(config.device), config.fps, stop)
    return OpencvSource(config)


class OpencvSource:
    """A V4L2 camera. Its JPEG (MJPG cameras) is passed on as it is and decoded only when used."""

    def __init__(self, config: CameraConfig) -> None:
        self._config = config
        device = config.device
        self._path = f"/dev/video{device}" if device.isdecimal() else device
        self._capture: cv2.VideoCapture | None = None

    def open(self) -> None:
        """Open and set format, size, rate and a queue of one buffer."""
        if not os.path.exists(self._path):
            raise CameraError(f"{self._path}: no such camera; see /dev/v4l/by-id")
        config = self._config
        capture = cv2.VideoCapture(self._path, cv2.CAP_V4L2)
        self._capture = capture
        if not capture.isOpened():
            raise CameraError(f"{self._path}: cannot be opened; is it in use, or not permitted?")
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*config.fourcc))
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, config.width)
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, config.height)
        capture.set(cv2.CAP_PROP_FPS, config.fps)
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        if config.fourcc == "MJPG":
            capture.set(cv2.CAP_PROP_CONVERT_RGB, 0)  # the camera's own JPEG bytes

    def read(self) -> Frame | None:
        """Wait for the next frame; CameraError when the device gives none."""
        if self._capture is None:
            raise CameraError(f"{self._path}: is not open")
        arrived, data = self._capture.read()
        if not arrived:
            raise CameraError(f"{self._path}: gives no picture")
        now_ns = time.monotonic_ns()
        # V4L2's own stamp of the buffer, CLOCK_MONOTONIC with nearly every driver
        stamp_ns = round(self._capture.get(cv2.CAP_PROP_POS_MSEC) * 1e6)
        if not now_ns - _OLDEST_STAMP_NS < stamp_ns <= now_ns:
            stamp_ns = now_ns
        return frame_of(np.asarray(data, np.uint8), stamp_ns)

    def close(self) -> None:
        """Release the device."""
        if self._capture is not None:
            self._capture.release()
            self._capture = None


def frame_of(data: npt.NDArray[np.uint8], captured_ns: int) -> Frame:
    """A frame from what OpenCV returned: pixels BGR `[h, w, 3]`, or the bytes of a JPEG.

    Bytes that are no JPEG make a frame of size 0x0: see `require_whole`.
    """
    if data.ndim == 3 and data.shape[2] == 3:
        rgb = cv2.cvtColor(data, cv2.COLOR_BGR2RGB)
        return Frame(0, captured_ns, data.shape[1], data.shape[0], Encoding.RGB, rgb.tobytes())
    raw = data.tobytes()
    end = raw.rfind(_END_OF_JPEG)
    try:
        width, height = jpeg_size(raw) if end > 0 else (0, 0)
    except WireError:
        width, height = 0, 0
    return Frame(0, captured_ns, width, height, Encoding.JPEG, raw[: end + 2])


def require_whole(frame: Frame) -> None:
    """CameraError when the frame can be no picture; cheap, decodes nothing."""
    if frame.width * frame.height == 0:
        raise CameraError("a picture was cut off, or is no JPEG")
    if frame.encoding is Encoding.RGB and len(frame.data) != frame.width * frame.height * 3:
        raise CameraError("a picture has not the bytes that its size says")


class SimSource:
    """Frames that the simulator's camera process publishes."""

    def __init__(self, path: Path, fps: float, stop: threading.Event) -> None:
        self._path = path
        self._period_s = 1 / fps
        self._stop = stop
        self._reader: FrameReader | None = None
        self._seen = 0
        self._captured_ns = 0  # of the last frame: a file opened again may still hold it
        self._arrived = 0.0

    def open(self) -> None:
        """Map the frame file; a simulator that is just starting gets a moment to make it."""
        end = time.monotonic() + _START_S
        while self._reader is None:
            try:
                self._reader = FrameReader(self._path)
            except IpcError as error:
                if time.monotonic() > end or self._stop.wait(_START_POLL_S):
                    raise CameraError(str(error)) from error
        self._seen = 0

    def read(self) -> Frame | None:
        """The next frame; waits until shortly before it is due, then polls."""
        reader = self._reader
        if reader is None:
            raise CameraError(f"{self._path}: is not open")
        begun = time.monotonic()
        self._stop.wait(min(_WAIT_S, self._arrived + _EARLY * self._period_s - begun))
        while reader.last == self._seen:
            if self._stop.is_set():
                return None
            if time.monotonic() - begun > _WAIT_S:
                if reader.replaced:
                    raise CameraError(f"{self._path}: the simulator has been restarted")
                return None
            self._stop.wait(_POLL_S)
        frame = reader.latest()
        if frame is None:
            self._stop.wait(_POLL_S)
            return None
        self._seen = frame.sequence
        if frame.captured_ns <= self._captured_ns:
            return None
        self._captured_ns = frame.captured_ns
        self._arrived = time.monotonic()
        return frame

    def close(self) -> None:
        """Unmap the file."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None


class FileSource:
    """A picture, or a video played in a loop, as if it were a camera."""

    def __init__(self, path: Path, fps: float, stop: threading.Event) -> None:
        self._path = path
        self._period_s = 1 / fps
        self._stop = stop
        self._picture: npt.NDArray[np.uint8] | None = None
        self._video: cv2.VideoCapture | None = None
        self._due = 0.0

    def open(self) -> None:
        """Read the picture, or open the video; CameraError when it is neither."""
        if not self._path.exists():
            raise CameraError(f"{self._path}: no such file")
        picture = cv2.imread(str(self._path), cv2.IMREAD_COLOR)
        if picture is not None:
            self._picture = np.asarray(picture, np.uint8)
        else:
            self._video = cv2.VideoCapture(str(self._path))
            if not self._video.isOpened():
                raise CameraError(f"{self._path}: is neither a picture nor a video")
        self._due = time.monotonic()

    def read(self) -> Frame | None:
        """The next frame, when it is due at the configured rate."""
        self._due = max(self._due + self._period_s, time.monotonic() - self._period_s)
        if self._stop.wait(max(0.0, self._due - time.monotonic())):
            return None
        picture = self._picture if self._picture is not None else self._next_of_video()
        return frame_of(picture, time.monotonic_ns())

    def _next_of_video(self) -> npt.NDArray[np.uint8]:
        if self._video is None:
            raise CameraError(f"{self._path}: is not open")
        arrived, picture = self._video.read()
        if not arrived:
            self._video.set(cv2.CAP_PROP_POS_FRAMES, 0)
            arrived, picture = self._video.read()
        if not arrived:
            raise CameraError(f"{self._path}: the video holds no readable picture")
        return np.asarray(picture, np.uint8)

    def close(self) -> None:
        """Close the file."""
        if self._video is not None:
            self._video.release()
        self._video = self._picture = None
