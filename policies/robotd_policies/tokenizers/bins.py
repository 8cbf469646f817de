"""Tokenizers that put numbers into equal bins: joint targets themselves, or their DCT.

A number v with bounds lo, hi goes to bin floor(clip((v - lo) / (hi - lo), 0, 1 - 1e-6) * K); a bin
decodes to its centre lo + (bin + 0.5) / K * (hi - lo), so the worst error inside the bounds is half
a bin. Uniform bins per joint and step: RT-1 (2022). DCT per joint over time, the low
frequencies kept: the transform of FAST (2025), with bins in place of its byte-pair merges.
"""

from typing import Any, Self

import numpy as np
import numpy.typing as npt
import onnx

from robotd.errors import ChunkError
from robotd_policies.tokenizers.base import ChunkLayout, Floats, Ids, Tokenizer
from robotd_policies.tokenizers.graph import DecoderGraph

_BELOW_ONE = 1.0 - 1e-6


def dct_basis(horizon: int, coefficients: int) -> npt.NDArray[np.float64]:
    """The first rows of the orthonormal DCT-II, `[coefficients, horizon]`; inverse = transpose."""
    k = np.arange(coefficients)[:, None]
    t = np.arange(horizon)[None, :]
    rows = np.cos(np.pi * k * (2 * t + 1) / (2 * horizon)) * np.sqrt(2.0 / horizon)
    rows[0] /= np.sqrt(2.0)
    return rows


class _Bins(Tokenizer):
    """Numbers `basis @ (chunk - reference)`, `[rows, joints]`, each in `bins` equal bins.

    Token order is row-major: row 0 of every joint, then row 1. `low`, `high`: `[rows, joints]`.
    """

    def __init__(
        self,
        layout: ChunkLayout,
        low: npt.NDArray[np.float64],
        high: npt.NDArray[np.float64],
        bins: int,
        relative: bool,
    ) -> None:
        if bins < 2:
            raise ValueError(f"bins must be at least 2, not {bins}")
        if not (np.isfinite(low).all() and np.isfinite(high).all() and (high > low).all()):
            raise ValueError("every bound must be finite, and high above low")
        self.layout = layout
        self.bins = bins
        self.relative = relative
        self._low = low.astype(np.float32)
        self._high = high.astype(np.float32)
        self._basis = self._rows(layout, low.shape[0]).astype(np.float32)

    @staticmethod
    def _rows(layout: ChunkLayout, rows: int) -> npt.NDArray[np.float64]:
        """The analysis matrix `[rows, horizon]`."""
        raise NotImplementedError

    @property
    def count(self) -> int:
        return int(self._low.size)

    @property
    def vocabulary(self) -> int:
        return self.bins

    def allowed(self) -> npt.NDArray[np.bool_]:
        return np.ones((self.count, self.bins), bool)

    def encode(self, chunks: Floats, reference: Floats) -> Ids:
        shape = (self.layout.horizon, self.layout.joints)
        if chunks.shape[-2:] != shape or reference.shape != (*chunks.shape[:-2], shape[1]):
            raise ValueError(
                f"chunks {chunks.shape}, reference {reference.shape}: expected "
                f"[..., {shape[0]}, {shape[1]}] and [..., {shape[1]}]"
            )
        if not (np.isfinite(chunks).all() and np.isfinite(reference).all()):
            raise ValueError("chunks and references must be finite numbers")
        values = self._values(chunks, reference, self._basis, self.relative)
        unit = np.clip((values - self._low) / (self._high - self._low), 0.0, _BELOW_ONE)
        ids = np.floor(unit * self.bins).astype(np.int64)
        return np.minimum(ids, self.bins - 1).reshape(*chunks.shape[:-2], self.count)

    def decode(self, tokens: Ids, reference: Floats) -> Floats:
        if tokens.shape != (self.count,):
            raise ChunkError(
                "token_count", f"{tokens.shape} tokens in place of {self.count}: refused"
            )
        wrong = (tokens < 0) | (tokens >= self.bins)
        if wrong.any():
            at = int(wrong.argmax())
            raise ChunkError(
                "token_id", f"token {at}: id {tokens[at]} is outside 0..{self.bins - 1}"
            )
        unit = ((tokens.astype(np.float32) + np.float32(0.5)) / np.float32(self.bins)).reshape(
            self._low.shape
        )
        chunk = self._basis.T @ (self._low + unit * (self._high - self._low))
        if self.relative:
            chunk = chunk + reference.astype(np.float32)
        return self.checked(chunk)

    def to_onnx(self, state_size: int, reference_at: int) -> onnx.ModelProto:
        graph = DecoderGraph(self.layout, self.count, state_size)
        values = graph.bins(self.bins, self._low, self._high)
        chunk = graph.op("MatMul", graph.constant(np.ascontiguousarray(self._basis.T)), values)
        if self.relative:
            chunk = graph.op("Add", chunk, graph.state_slice(reference_at, self.layout.joints))
        return graph.finish(chunk)

    def fields(self) -> dict[str, Any]:
        return {
            "bins": self.bins,
            "relative": self.relative,
            "low": self._low.tolist(),
            "high": self._high.tolist(),
        }

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Self:
        layout = fields["layout"]
        return cls(
            ChunkLayout(layout["horizon"], tuple(layout["low"]), tuple(layout["high"])),
            np.asarray(fields["low"]),
            np.asarray(fields["high"]),
            fields["bins"],
            fields["relative"],
        )

    @staticmethod
    def _values(
        chunks: Floats, reference: Floats, basis: npt.NDArray[Any], relative: bool
    ) -> npt.NDArray[Any]:
        offset = reference[..., None, :] if relative else 0.0
        return basis @ (chunks - offset)

    @staticmethod
    def _widen(
        low: npt.NDArray[np.float64], high: npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Bounds at least half a unit apart: a joint that never moved still has bins."""
        short = np.maximum(0.0, 0.5 - (high - low)) / 2
        return low - short, high + short


class UniformBins(_Bins):
    """One token per step and joint; bounds per joint = the data's (or the joint's full range)."""

    scheme = "uniform_bins"

    @classmethod
    def fit(cls, chunks: Floats, reference: Floats, layout: ChunkLayout, **options: Any) -> Self:
        """Options: `bins` (256), `relative` (False: targets themselves, over the joints' range;
        True: differences from the reference, over the data's minimum and maximum).
        """
        bins, relative = options.get("bins", 256), options.get("relative", False)
        if relative:
            values = chunks - reference[:, None, :]
            low, high = cls._widen(
                values.min((0, 1)).astype(np.float64), values.max((0, 1)).astype(np.float64)
            )
        else:
            low, high = np.asarray(layout.low), np.asarray(layout.high)
        rows = (layout.horizon, 1)
        return cls(layout, np.tile(low, rows), np.tile(high, rows), bins, relative)

    @staticmethod
    def _rows(layout: ChunkLayout, rows: int) -> npt.NDArray[np.float64]:
        if rows != layout.horizon:
            raise ValueError(f"{rows} rows of bounds for a horizon of {layout.horizon}")
        return np.eye(rows)


class DctBins(_Bins):
    """One token per kept DCT coefficient and joint; bounds per coefficient and joint."""

    scheme = "dct_bins"

    @classmethod
    def fit(cls, chunks: Floats, reference: Floats, layout: ChunkLayout, **options: Any) -> Self:
        """Options: `coefficients` (5), `bins` (256), `relative` (True), `quantile` (0.0: the
        bounds are the data's extremes; q > 0: its q and 1 - q quantiles, what is beyond clips).
        """
        coefficients, bins = options.get("coefficients", 5), options.get("bins", 256)
        relative, quantile = options.get("relative", True), options.get("quantile", 0.0)
        basis = dct_basis(layout.horizon, coefficients)
        values = cls._values(chunks, reference, basis, relative)
        low, high = np.quantile(values, (quantile, 1.0 - quantile), axis=0)
        return cls(layout, *cls._widen(low, high), bins, relative)

    @staticmethod
    def _rows(layout: ChunkLayout, rows: int) -> npt.NDArray[np.float64]:
        return dct_basis(layout.horizon, rows)
