"""Images that came over the wire, as the pixels that the policy's graph takes."""

import numpy as np

from robotd.errors import WireError
from robotd.policy.session import Image
from robotd.policy.wire import ImageInfo, pixels_of

_NO_SIZE = {0xC4, 0xC8, 0xCC}  # DHT, JPG, DAC share the range of the frame headers (ITU T.81 B.1)


def jpeg_size(data: bytes) -> tuple[int, int]:
    """(width, height) from a JPEG's frame header; WireError when there is none.

    Read before decoding, so that a small file cannot claim a huge picture.
    """
    at = 2
    if data[:2] != b"\xff\xd8":
        raise WireError("an image is no JPEG")
    while at + 9 <= len(data):
        marker = data[at + 1]
        if data[at] != 0xFF:
            break
        if 0xC0 <= marker <= 0xCF and marker not in _NO_SIZE:
            return int.from_bytes(data[at + 7 : at + 9]), int.from_bytes(data[at + 5 : at + 7])
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    raise WireError("an image is no JPEG: it has no frame header")


def decode_image(info: ImageInfo, buffer: bytes) -> Image:
    """uint8 RGB `[height, width, 3]`; WireError when the buffer is not what its header says."""
    if info.encoding == "rgb":
        return pixels_of(info, buffer)
    if jpeg_size(buffer) != (info.width, info.height):
        raise WireError(f"image {info.camera} is a JPEG of another size than its header says")
    import cv2  # only links that compress need it

    try:
        decoded = cv2.imdecode(np.frombuffer(buffer, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise WireError(f"image {info.camera} is no readable JPEG") from error
    if decoded is None or decoded.shape != (info.height, info.width, 3):
        raise WireError(f"image {info.camera} is no readable JPEG")
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), np.uint8)
