"""Pictures for people: camera frames side by side, enlarged, saved or handed to a window."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from robotd.errors import IpcError
from robotd.ipc.frames import FRAMES_DIR, Encoding, Frame, FrameReader

Image = NDArray[np.uint8]


def decode(frame: Frame) -> Image:
    """RGB uint8 [height, width, 3] of a published frame."""
    if frame.encoding is Encoding.RGB:
        return np.frombuffer(frame.data, np.uint8).reshape(frame.height, frame.width, 3)
    image = cv2.imdecode(np.frombuffer(frame.data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise IpcError("a published frame is no valid JPEG")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)


class Viewer:
    """The newest frame of every camera that is being published in a runtime directory."""

    def __init__(self, runtime_dir: Path, cameras: Sequence[str]) -> None:
        self._paths = [runtime_dir / FRAMES_DIR / name for name in cameras]
        self._readers: dict[Path, FrameReader] = {}

    def sheet(self, height: int = 288) -> Image | None:
        """All cameras side by side at that height; None before the first frames."""
        images = []
        for path in self._paths:
            try:
                reader = self._readers.get(path)
                if reader is None or reader.replaced:
                    reader = self._readers[path] = FrameReader(path)
                frame = reader.latest()
            except IpcError:
                return None
            if frame is None:
                return None
            images.append(enlarge(decode(frame), height))
        return np.hstack(images) if images else None

    def close(self) -> None:
        """Unmap every camera."""
        for reader in self._readers.values():
            reader.close()


def enlarge(image: Image, height: int) -> Image:
    """Scaled to a height, aspect kept."""
    width = round(image.shape[1] * height / image.shape[0])
    scaled = cv2.resize(image, (width, height), interpolation=cv2.INTER_NEAREST)
    return np.asarray(scaled, dtype=np.uint8)


def save(path: Path, image: Image) -> None:
    """Write an RGB image; the ending of the name says the format. IpcError when it cannot."""
    fresh = path.with_name(f".new-{path.name}")
    try:
        if not cv2.imwrite(str(fresh), cv2.cvtColor(image, cv2.COLOR_RGB2BGR)):
            raise IpcError(f"{path}: cannot be written; does the folder exist?")
    except cv2.error as error:
        raise IpcError(f"{path}: no picture format by that ending; use .png or .jpg") from error
    fresh.replace(path)
