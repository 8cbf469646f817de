"""Observations: one tick's joints and the newest pictures, in the form that the bundle wants.

Pure: (tick report, pictures) -> observation. Its time is the tick's deadline, to which the chunk
that answers it refers; every picture knows its age at that time.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from robotd.errors import CameraError
from robotd.ipc.frames import Encoding, Frame
from robotd.ipc.ring import TickReport
from robotd.policy.bundle import ImageInput, Manifest
from robotd.policy.session import Floats, Image


@dataclass(frozen=True, slots=True)
class Picture:
    """One camera's picture at the size that the policy takes."""

    captured_ns: int
    image: Image


@dataclass(frozen=True, slots=True)
class Observation:
    """What the policy sees. `state` is float32 `[S]`, images are uint8 RGB by camera name."""

    sequence: int
    observed_ns: int
    state: Floats
    images: dict[str, Image]
    ages_s: dict[str, float]  # of each picture, at the observation's time


@dataclass(frozen=True, slots=True)
class Missing:
    """Why there is no observation: a short stable word for the counter, and a sentence."""

    reason: str  # invalid_state | no_frame | old_frame
    text: str


def decode_frame(frame: Frame) -> Image:
    """The frame's pixels, uint8 RGB `[height, width, 3]`; CameraError when it holds no picture."""
    if frame.encoding is Encoding.RGB:
        expected = frame.width * frame.height * 3
        if len(frame.data) != expected or expected == 0:
            raise CameraError(
                f"a frame of {frame.width}x{frame.height} has {len(frame.data)} bytes, "
                f"not {expected}"
            )
        pixels = np.frombuffer(frame.data, np.uint8)
        return pixels.reshape(frame.height, frame.width, 3)
    try:
        decoded = cv2.imdecode(np.frombuffer(frame.data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise CameraError("a frame holds no readable JPEG") from error
    if decoded is None:
        raise CameraError("a frame holds no readable JPEG")
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), np.uint8)


def fit(image: Image, width: int, height: int) -> Image:
    """The image at another size: the largest centred part of that aspect, averaged down.

    An image of the right size is returned as it is.
    """
    have_height, have_width = image.shape[:2]
    if (have_width, have_height) == (width, height):
        return image
    part_width = min(have_width, max(1, round(have_height * width / height)))
    part_height = min(have_height, max(1, round(have_width * height / width)))
    left, top = (have_width - part_width) // 2, (have_height - part_height) // 2
    part = image[top : top + part_height, left : left + part_width]
    return np.asarray(cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def picture(frame: Frame, wanted: ImageInput) -> Picture:
    """A camera's frame as the bundle wants it; CameraError when it cannot be decoded."""
    return Picture(frame.captured_ns, fit(decode_frame(frame), wanted.width, wanted.height))


def state_vector(manifest: Manifest, report: TickReport) -> Floats | Missing:
    """The manifest's state parts from one tick: float32 `[S]`, every value measured or applied."""
    parts: dict[str, list[float]] = {
        "position": [joint.position for joint in report.joints],
        "applied": [joint.applied for joint in report.joints],
    }
    if len(report.joints) != len(manifest.joints):
        return Missing(
            "invalid_state",
            f"control reports {len(report.joints)} joints, the policy has {len(manifest.joints)}",
        )
    for name, joint in zip(manifest.joints, report.joints, strict=True):
        if not joint.valid:
            return Missing("invalid_state", f"{name} was not read in this tick")
    values = [value for part in manifest.state.parts for value in parts[part]]
    state = np.asarray(values, np.float32)
    if not np.isfinite(state).all():
        at = int(np.argmin(np.isfinite(state)))
        part = manifest.state.parts[at // len(manifest.joints)]
        name = manifest.joints[at % len(manifest.joints)]
        return Missing("invalid_state", f"{name}: {part} is not a number")
    return state


def assemble(
    manifest: Manifest,
    sequence: int,
    report: TickReport,
    pictures: Mapping[str, Picture],
    max_age_ns: int,
) -> Observation | Missing:
    """One observation, or why there is none: a joint not read, a picture missing or too old."""
    state = state_vector(manifest, report)
    if isinstance(state, Missing):
        return state
    images: dict[str, Image] = {}
    ages_s: dict[str, float] = {}
    for wanted in manifest.images:
        found = pictures.get(wanted.camera)
        if found is None:
            return Missing("no_frame", f"camera {wanted.camera} has given no picture")
        age_ns = max(0, report.deadline_ns - found.captured_ns)
        if age_ns > max_age_ns:
            return Missing(
                "old_frame",
                f"camera {wanted.camera}: newest picture is {age_ns / 1e6:.0f} ms old, "
                f"allowed are {max_age_ns / 1e6:.0f}",
            )
        images[wanted.camera] = found.image
        ages_s[wanted.camera] = age_ns / 1e9
    return Observation(sequence, report.deadline_ns, state, images, ages_s)
