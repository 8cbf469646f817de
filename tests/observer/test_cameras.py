"""Cameras: drivers, ages, and what a stalled, vanished, hung or broken one does to the others."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from robotd.config import CameraConfig
from robotd.errors import CameraError
from robotd.ipc.frames import Encoding, Frame, FrameReader, FrameWriter
from robotd.observer.cameras import Camera, Cameras, CameraStatus
from robotd.observer.sources import OpencvSource, frame_of, require_whole
from robotd.policy.bundle import ImageInput
from tests.workers import wait_until

RED_RGB = (250, 5, 5)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Callable[..., Cameras]]:
    """Starts cameras from configurations; stops them at the end of the test."""
    started: list[Cameras] = []

    def start(*configs: CameraConfig, images: tuple[ImageInput, ...] = ()) -> Cameras:
        cameras = Cameras(configs, images, tmp_path)
        started.append(cameras)
        cameras.start()
        return cameras

    yield start
    for cameras in started:
        cameras.stop()


def config(name: str, driver: str, device: Path | str = "", **more: object) -> CameraConfig:
    raw = {"name": name, "driver": driver, "device": str(device), "fps": 50, "reopen_s": 0.1}
    return CameraConfig.model_validate(raw | more)


def status(cameras: Cameras, name: str = "front") -> CameraStatus:
    return cameras.status(time.monotonic_ns())[name]


def state_is(cameras: Cameras, state: str, name: str = "front") -> Callable[[], bool]:
    return lambda: status(cameras, name).state == state


def red_picture(path: Path, width: int = 32, height: int = 24) -> Path:
    image = np.zeros((height, width, 3), np.uint8)
    image[:] = RED_RGB[::-1]  # OpenCV's order
    assert cv2.imwrite(str(path), image)
    return path


def sim_writer(tmp_path: Path, name: str = "front", size: int = 16) -> FrameWriter:
    return FrameWriter(tmp_path / "frames" / name, size * size * 3)


def publish(writer: FrameWriter, level: int = 100, size: int = 16) -> None:
    data = bytes([level]) * (size * size * 3)
    writer.publish(data, time.monotonic_ns(), size, size, Encoding.RGB)


def test_a_picture_file_is_a_camera(tmp_path: Path, running: Callable[..., Cameras]) -> None:
    file = red_picture(tmp_path / "red.png")
    wanted = ImageInput(camera="front", width=8, height=8)
    cameras = running(config("front", "file", file), images=(wanted,))
    wait_until(lambda: status(cameras).frames > 3, "frames from a picture")
    shown = cameras.pictures()["front"]
    assert shown.image.shape == (8, 8, 3)
    assert tuple(shown.image[4, 4]) == RED_RGB
    now = status(cameras)
    assert now.state == "live"
    assert now.notice == "32x24 is cropped and resized to 8x8 for the policy"
    assert (now.error, now.reopens, now.bad_frames) == ("", 0, 0)
    published = FrameReader(tmp_path / "frames" / "front").latest()
    assert published is not None
    assert (published.width, published.height) == (32, 24)
    assert published.encoding is Encoding.RGB
    assert tuple(published.data[:3]) == RED_RGB


def test_a_video_file_is_looped(tmp_path: Path, running: Callable[..., Cameras]) -> None:
    path = tmp_path / "video.avi"
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (16, 16))
    assert video.isOpened()
    for level in (0, 120, 250):
        video.write(np.full((16, 16, 3), level, np.uint8))
    video.release()
    wanted = ImageInput(camera="front", width=16, height=16)
    cameras = running(config("front", "file", path, fps=100), images=(wanted,))
    levels: set[int] = set()

    def all_seen() -> bool:
        levels.update(
            round(float(shown.image.mean()) / 10) for shown in cameras.pictures().values()
        )
        return len(levels) >= 3 and status(cameras).frames > 8

    wait_until(all_seen, "every picture of the video, again and again")


def test_a_picture_larger_than_configured_is_published_all_the_same(
    tmp_path: Path, running: Callable[..., Cameras]
) -> None:
    file = red_picture(tmp_path / "red.png", 64, 64)
    cameras = running(config("front", "file", file, width=16, height=16))
    wait_until(lambda: status(cameras).frames > 2, "frames")
    published = FrameReader(tmp_path / "frames" / "front").latest()
    assert published is not None
    assert len(published.data) == 64 * 64 * 3


def test_simulated_frames_keep_their_capture_time(
    tmp_path: Path, running: Callable[..., Cameras]
) -> None:
    writer = sim_writer(tmp_path)
    wanted = ImageInput(camera="front", width=16, height=16)
    cameras = running(config("front", "sim"), images=(wanted,))
    assert cameras.pictures() == {}
    captured_ns = time.monotonic_ns() - 30_000_000
    writer.publish(bytes([7]) * 768, captured_ns, 16, 16, Encoding.RGB)
    wait_until(lambda: "front" in cameras.pictures(), "the frame")
    shown = cameras.pictures()["front"]
    assert shown.captured_ns == captured_ns
    assert (shown.image == 7).all()
    age_ms = status(cameras).age_ms
    assert age_ms is not None
    assert age_ms >= 30
    assert not (tmp_path / "frames" / "front.new").exists()


def test_a_stalled_camera_grows_old_and_is_opened_again(
    tmp_path: Path, running: Callable[..., Cameras]
) -> None:
    writer = sim_writer(tmp_path)
    cameras = running(config("front", "sim"))
    publish(writer)
    wait_until(state_is(cameras, "live"), "live")
    wait_until(state_is(cameras, "silent"), "silent")
    wait_until(lambda: status(cameras).reopens >= 2, "opened again")
    assert "no picture for" in status(cameras).error
    assert status(cameras).frames == 1  # the old frame is not taken for a new one

    def revived() -> bool:
        publish(writer)
        return status(cameras).state == "live" and status(cameras).error == ""

    wait_until(revived, "live again")


def test_a_simulator_that_comes_later_or_again_is_found(
    tmp_path: Path, running: Callable[..., Cameras]
) -> None:
    cameras = running(config("front", "sim"))
    wait_until(state_is(cameras, "failed"), "failed")
    assert "no such camera" in status(cameras).error
    for _ in range(2):
        frames = status(cameras).frames
        writer = sim_writer(tmp_path)  # replaces the file of the one before

        def frames_come(writer: FrameWriter = writer, frames: int = frames) -> bool:
            publish(writer)
            return status(cameras).frames > frames + 3

        wait_until(frames_come, "frames of the new simulator")


def test_a_damaged_frame_file_is_reported_and_left_when_mended(
    tmp_path: Path, running: Callable[..., Cameras]
) -> None:
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "front").write_bytes(os.urandom(9000))
    cameras = running(config("front", "sim"))
    wait_until(state_is(cameras, "failed"), "failed")
    assert "no frame file" in status(cameras).error
    writer = sim_writer(tmp_path)

    def live() -> bool:
        publish(writer)
        return status(cameras).state == "live"

    wait_until(live, "live")


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no such file"), (b"", "neither a picture nor a video"), (b"junk" * 500, "neither")],
)
def test_a_file_that_is_no_picture(
    tmp_path: Path, running: Callable[..., Cameras], content: bytes | None, words: str
) -> None:
    path = tmp_path / "camera.png"
    if content is not None:
        path.write_bytes(content)
    cameras = running(config("front", "file", path))
    wait_until(state_is(cameras, "failed"), "failed")
    assert words in status(cameras).error
    red_picture(path)
    wait_until(state_is(cameras, "live"), "live once the file is good")


def test_a_device_that_is_not_there(running: Callable[..., Cameras]) -> None:
    cameras = running(config("front", "opencv", "/dev/v4l/by-id/none"), config("w", "opencv", "99"))
    wait_until(state_is(cameras, "failed"), "failed")
    assert "/dev/v4l/by-id/none: no such camera" in status(cameras).error
    wait_until(lambda: "/dev/video99: no such camera" in status(cameras, "w").error, "failed")


def test_a_device_that_is_no_camera() -> None:
    source = OpencvSource(config("front", "opencv", "/dev/null"))
    with pytest.raises(CameraError, match="cannot be opened"):
        source.open()
    source.close()


def test_a_hung_camera_holds_up_nothing_else(
    tmp_path: Path, running: Callable[..., Cameras]
) -> None:
    """Opening a pipe that nobody writes to blocks for ever, as a hung device does."""
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    good = red_picture(tmp_path / "red.png")
    wanted = ImageInput(camera="good", width=32, height=24)
    cameras = running(config("hung", "file", pipe), config("good", "file", good), images=(wanted,))
    try:
        wait_until(state_is(cameras, "stuck", "hung"), "reported as stuck")
        assert "has not returned for" in status(cameras, "hung").error
        assert status(cameras, "good").state == "live"
        assert "good" in cameras.pictures()
        begun = time.monotonic()
        cameras.stop(0.2)
        assert time.monotonic() - begun < 30
    finally:
        os.close(os.open(pipe, os.O_WRONLY))  # lets the thread go


class Scripted:
    """A source that gives what a test puts into it."""

    def __init__(self) -> None:
        self.frames: list[Frame | Exception] = []
        self.opened = 0

    def open(self) -> None:
        self.opened += 1

    def read(self) -> Frame | None:
        time.sleep(0.002)
        if not self.frames:
            return None
        frame = self.frames.pop(0)
        if isinstance(frame, Exception):
            raise frame
        return frame

    def close(self) -> None:
        pass


@pytest.mark.parametrize("eager", [False, True])
def test_a_bad_frame_is_counted_and_the_device_kept_open(eager: bool) -> None:
    stop = threading.Event()
    source = Scripted()
    wanted = ImageInput(camera="front", width=8, height=8)
    camera = Camera(config("front", "file", "x", reopen_s=30), source, stop, wanted)
    camera.eager = eager
    camera.start()
    try:
        now = time.monotonic_ns()
        good = Frame(0, now, 8, 8, Encoding.RGB, bytes(192))
        bad = (
            Frame(0, now, 0, 0, Encoding.JPEG, b"cut off"),
            Frame(0, now, 8, 8, Encoding.RGB, bytes(191)),
            Frame(0, now, 8, 8, Encoding.JPEG, b"\xff\xd8 nonsense \xff\xd9"),
        )
        for number, frame in enumerate(bad, start=1):
            source.frames += [good, frame]
            wait_until(lambda: not source.frames, "frames taken")

            def counted(number: int = number) -> bool:
                camera.picture()
                return camera.status(time.monotonic_ns()).bad_frames == number

            wait_until(counted, "the bad frame counted")
        source.frames.append(good)
        wait_until(lambda: camera.picture() is not None, "a good picture after bad ones")
        assert source.opened == 1
    finally:
        stop.set()
        assert camera.join(10)


def test_a_driver_that_raises_something_unforeseen_is_opened_again() -> None:
    stop = threading.Event()
    source = Scripted()
    source.frames = [ValueError("surprise")]
    camera = Camera(config("front", "file", "x", reopen_s=0.01), source, stop)
    camera.start()
    try:
        wait_until(lambda: source.opened >= 2, "opened again")
        assert "surprise" in camera.status(time.monotonic_ns()).error
    finally:
        stop.set()
        assert camera.join(10)


def test_what_opencv_returns_becomes_a_frame() -> None:
    bgr = np.zeros((6, 10, 3), np.uint8)
    bgr[:] = RED_RGB[::-1]
    frame = frame_of(bgr, 5)
    assert (frame.width, frame.height, frame.encoding) == (10, 6, Encoding.RGB)
    assert tuple(frame.data[:3]) == RED_RGB
    jpeg = cv2.imencode(".jpg", bgr)[1]
    padded = np.concatenate([jpeg.reshape(1, -1), np.zeros((1, 50), np.uint8)], axis=1)
    frame = frame_of(padded, 5)
    assert (frame.width, frame.height, frame.encoding) == (10, 6, Encoding.JPEG)
    assert frame.data == jpeg.tobytes()
    require_whole(frame)
    for cut in (jpeg.reshape(1, -1)[:, :100], np.zeros((1, 50), np.uint8)):
        with pytest.raises(CameraError, match="cut off"):
            require_whole(frame_of(cut, 5))
