"""The protocol between observer and policy worker: multipart messages, pure encode and decode.

    part 0        b"rbd", version byte, then a msgpack map: the header
    parts 1..n    raw little-endian buffers, whose number and sizes follow from the header

    observer -> worker    HELLO    who asks, with which bundle
                          OBSERVE  state float32, one buffer per image
                          PING
    worker -> observer    HELLO    bundle served, warm-up times, manifest (its bundle.json)
                          CHUNK    tokens int64, echoing sequence and time of its OBSERVE
                          ERROR    why an OBSERVE is not answered, or what was malformed
                          PONG

Whatever breaks the protocol is a WireError. Nothing here executes or allocates what a peer says:
no pickle, unknown fields are refused, every size is bounded before use.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
import numpy as np

from robotd.errors import WireError
from robotd.policy.session import Floats, Ids, Image

VERSION = 1
_PREFIX = b"rbd" + bytes([VERSION])
MAX_HEADER = 16384  # bytes
MAX_MANIFEST = 1 << 20  # bytes
MAX_SIDE = 4096  # pixels
MAX_IMAGE = MAX_SIDE * MAX_SIDE * 3  # bytes
MAX_IMAGES = 8
MAX_STATE = 64
MAX_TOKENS = 4096

Sizes = tuple[tuple[int, int], ...]  # least and most bytes of each buffer
Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Sequence64 = Annotated[int, msgspec.Meta(ge=1, le=2**62)]
Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$", max_length=64)]
ClientId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}$", max_length=16)]
Word = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9_]+$", max_length=64)]
Side = Annotated[int, msgspec.Meta(ge=1, le=MAX_SIDE)]
Milliseconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    def buffers(self) -> Sizes:
        """Least and most bytes of each buffer that follows this header."""
        return ()


class Hello(_Header, frozen=True, tag="hello"):
    """First message of both sides. The worker's carries its manifest, the observer's nothing."""

    client: ClientId  # the observer's own number; the worker echoes it
    digest: Digest  # of the bundle that this side has loaded
    name: Annotated[str, msgspec.Meta(max_length=64)] = ""
    warmup_ms: Annotated[tuple[Milliseconds, ...], msgspec.Meta(max_length=16)] = ()
    manifest_size: Annotated[int, msgspec.Meta(ge=0, le=MAX_MANIFEST)] = 0

    def buffers(self) -> Sizes:
        return ((self.manifest_size, self.manifest_size),) if self.manifest_size else ()


class ImageInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one image buffer holds: uint8 RGB `[height, width, 3]`, or a JPEG of that size."""

    camera: Word
    width: Side
    height: Side
    encoding: Literal["rgb", "jpeg"] = "rgb"

    def size(self) -> tuple[int, int]:
        """Least and most bytes of the buffer."""
        raw = self.width * self.height * 3
        return (raw, raw) if self.encoding == "rgb" else (4, max(raw, 65536))


class Observe(_Header, frozen=True, tag="observe"):
    """One observation. Answered by CHUNK or ERROR with the same sequence."""

    client: ClientId
    sequence: Sequence64
    observed_ns: Count  # the observer's clock; only echoed
    digest: Digest
    state_size: Annotated[int, msgspec.Meta(ge=1, le=MAX_STATE)]
    images: Annotated[tuple[ImageInfo, ...], msgspec.Meta(max_length=MAX_IMAGES)] = ()
    task: Annotated[str, msgspec.Meta(max_length=1000)] = ""

    def buffers(self) -> Sizes:
        state = self.state_size * 4
        return ((state, state), *(image.size() for image in self.images))


class Chunk(_Header, frozen=True, tag="chunk"):
    """The tokens for one observation."""

    sequence: Sequence64
    observed_ns: Count
    digest: Digest
    count: Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)]
    waited_ns: Count = 0  # between receiving the observation and starting on it
    inference_ns: Count = 0

    def buffers(self) -> Sizes:
        return ((self.count * 8, self.count * 8),)


class Error(_Header, frozen=True, tag="error"):
    """An observation that gets no tokens, or (sequence 0) a message that was not understood."""

    sequence: Count
    reason: Word
    text: Annotated[str, msgspec.Meta(max_length=500)] = ""


class Ping(_Header, frozen=True, tag="ping"):
    """Are you there?"""

    nonce: Count


class Pong(_Header, frozen=True, tag="pong"):
    """Yes; the nonce is the PING's."""

    nonce: Count


Header = Hello | Observe | Chunk | Error | Ping | Pong
_DECODER = msgspec.msgpack.Decoder(Header)
_ENCODER = msgspec.msgpack.Encoder()


@dataclass(frozen=True, slots=True)
class Message:
    """A decoded message: its sizes are as the header says, its content is not judged yet."""

    header: Header
    buffers: tuple[bytes, ...] = ()


def encode(header: Header, *buffers: bytes) -> list[bytes]:
    """The parts of a message; WireError when header and buffers do not belong together."""
    _require_sizes(header, buffers)
    return [_PREFIX + _ENCODER.encode(header), *buffers]


def decode(parts: Sequence[bytes]) -> Message:
    """The message in these parts; WireError for anything that is no message of this version."""
    if not parts or len(parts[0]) > MAX_HEADER:
        raise WireError(f"a header of {len(parts[0])} bytes" if parts else "a message of no parts")
    first = parts[0]
    if first[:3] != _PREFIX[:3]:
        raise WireError("not a message of robotd's policy link")
    if first[:4] != _PREFIX:
        raise WireError(f"protocol version {first[3:4].hex() or 'none'}, not {VERSION:02x}")
    try:
        header: Header = _DECODER.decode(first[4:])
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise WireError(f"malformed header: {error}") from error
    buffers = tuple(parts[1:])
    _require_sizes(header, buffers)
    return Message(header, buffers)


def _require_sizes(header: Header, buffers: Sequence[bytes]) -> None:
    sizes = header.buffers()
    kind = type(header).__name__
    if len(buffers) != len(sizes):
        raise WireError(f"{kind} with {len(buffers)} buffers, its header says {len(sizes)}")
    for number, (buffer, (least, most)) in enumerate(zip(buffers, sizes, strict=True)):
        if not least <= len(buffer) <= most:
            raise WireError(f"{kind}: buffer {number} has {len(buffer)} bytes, not {least}")


def state_of(message: Message) -> Floats:
    """State vector of an OBSERVE; WireError when a value is not finite."""
    state = np.frombuffer(message.buffers[0], "<f4").astype(np.float32)
    if not np.isfinite(state).all():
        raise WireError("the state holds a value that is not finite")
    return state


def pixels_of(info: ImageInfo, buffer: bytes) -> Image:
    """Pixels of an "rgb" image buffer, uint8 `[height, width, 3]`."""
    return np.frombuffer(buffer, np.uint8).reshape(info.height, info.width, 3)


def tokens_of(message: Message) -> Ids:
    """Tokens of a CHUNK, int64 `[count]`."""
    return np.frombuffer(message.buffers[0], "<i8").astype(np.int64)


def pack_state(state: Floats) -> bytes:
    """State vector as it stands in a message."""
    return state.astype("<f4").tobytes()


def pack_tokens(tokens: Ids) -> bytes:
    """Tokens as they stand in a message."""
    return tokens.astype("<i8").tobytes()
