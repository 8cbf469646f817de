"""What every action tokenizer is: fit, encode, decode, export to ONNX, save, load."""

import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import onnx

from robotd.errors import ChunkError

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

# A decoded target may leave its joint's range by this much (units) before the chunk is invalid;
# what is inside the tolerance is clipped to the range. Five DCT coefficients of a gripper that
# shuts and then stays shut overshoot its end by up to nine units, which only means "shut".
RANGE_TOLERANCE = 10.0


@dataclass(frozen=True)
class ChunkLayout:
    """Shape and allowed range of a chunk: `horizon` steps x one target per joint, units."""

    horizon: int
    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def joints(self) -> int:
        """Number of joints."""
        return len(self.low)

    @classmethod
    def arm(cls, horizon: int) -> Self:
        """Five body joints in [-100, 100] and a gripper in [0, 100]."""
        return cls(horizon, (-100.0,) * 5 + (0.0,), (100.0,) * 6)


class Tokenizer(ABC):
    """Chunks `[..., horizon, joints]` <-> token ids `[..., count]`.

    `reference` `[..., joints]` is the last applied target of each joint: schemes that encode
    relative to it add it back when decoding; the exported graph takes it out of the state vector.
    """

    scheme: ClassVar[str]
    layout: ChunkLayout

    @classmethod
    @abstractmethod
    def fit(cls, chunks: Floats, reference: Floats, layout: ChunkLayout, **options: Any) -> Self:
        """Choose the scheme's constants from chunks `[M, horizon, joints]` and their references."""

    @property
    @abstractmethod
    def count(self) -> int:
        """Tokens per chunk."""

    @property
    @abstractmethod
    def vocabulary(self) -> int:
        """Number of ids; ids run from 0."""

    @abstractmethod
    def allowed(self) -> npt.NDArray[np.bool_]:
        """`[count, vocabulary]`: which ids may stand at which position (the policy's mask)."""

    @abstractmethod
    def encode(self, chunks: Floats, reference: Floats) -> Ids:
        """Token ids `[..., count]`. Raises ValueError for a wrong shape or non-finite values."""

    @abstractmethod
    def decode(self, tokens: Ids, reference: Floats) -> Floats:
        """The chunk `[horizon, joints]` of tokens `[count]`. Raises ChunkError when invalid."""

    @abstractmethod
    def to_onnx(self, state_size: int, reference_at: int) -> onnx.ModelProto:
        """The decoder as a graph: tokens int64 [count], state float32 [state_size] ->
        actions float32 [horizon, joints], valid bool []. The reference is
        `state[reference_at : reference_at + joints]`.
        """

    @abstractmethod
    def fields(self) -> dict[str, Any]:
        """The constants as JSON values (without scheme and layout)."""

    @classmethod
    @abstractmethod
    def from_fields(cls, fields: dict[str, Any]) -> Self:
        """Rebuild from what `save` wrote."""

    def save(self, path: Path) -> None:
        """Write as JSON; `robotd_policies.tokenizers.load` reads it."""
        fields = {"scheme": self.scheme, "layout": asdict(self.layout), **self.fields()}
        path.write_text(json.dumps(fields))

    def checked(self, chunk: Floats) -> Floats:
        """The chunk clipped to the joints' range; ChunkError beyond the tolerance or non-finite."""
        if not np.isfinite(chunk).all():
            raise ChunkError("not_finite", "a decoded target is not a finite number")
        low = np.asarray(self.layout.low, np.float32)
        high = np.asarray(self.layout.high, np.float32)
        excess = np.maximum(low - chunk, chunk - high)
        if (excess > np.float32(RANGE_TOLERANCE)).any():
            step, joint = np.unravel_index(int(excess.argmax()), excess.shape)
            raise ChunkError(
                "out_of_range",
                f"step {step}, joint {joint}: decoded target {chunk[step, joint]:.1f} is outside "
                f"[{low[joint]:.0f}, {high[joint]:.0f}] by more than {RANGE_TOLERANCE:g}",
            )
        return np.clip(chunk, low, high)
