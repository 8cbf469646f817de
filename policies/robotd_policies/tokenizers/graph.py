"""Building `detokenizer.onnx`: a few nodes, the checks that every decoder needs, one opset."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from robotd_policies.tokenizers.base import RANGE_TOLERANCE, ChunkLayout

OPSET = 17
IR_VERSION = 8  # the one that came with opset 17: old runtimes read it


class DecoderGraph:
    """A graph tokens int64 [count], state float32 [state_size] -> actions, valid.

    Nodes are added with `op`; `finish` adds the range check and the clip. Every check that was
    added (`check`) must hold for `valid` to be true; ids outside the vocabulary are clamped
    before use so that no input can make the graph fail.
    """

    def __init__(self, layout: ChunkLayout, count: int, state_size: int) -> None:
        self._layout = layout
        self._inputs = [
            helper.make_tensor_value_info("tokens", TensorProto.INT64, [count]),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [state_size]),
        ]
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._checks: list[str] = []

    def constant(self, value: npt.NDArray[Any]) -> str:
        """Name of a new constant."""
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(value, name))
        return name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output; its name."""
        name = f"{kind.lower()}{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def check(self, booleans: str) -> None:
        """`valid` only when all elements are true."""
        as_int = self.op("Cast", booleans, to=TensorProto.INT64)
        smallest = self.op("ReduceMin", self.op("Reshape", as_int, self._flat()), keepdims=0)
        self._checks.append(self.op("Cast", smallest, to=TensorProto.BOOL))

    def bins(self, bins: int, low: npt.NDArray[np.float32], high: npt.NDArray[np.float32]) -> str:
        """Bin centres of the ids, in the shape of `low`: low + (id + 0.5) / bins * (high - low)."""
        first, last = self.constant(np.int64(0)), self.constant(np.int64(bins - 1))
        self.check(self.op("GreaterOrEqual", "tokens", first))
        self.check(self.op("LessOrEqual", "tokens", last))
        ids = self.op("Cast", self.op("Clip", "tokens", first, last), to=TensorProto.FLOAT)
        half = self.op("Add", ids, self.constant(np.float32(0.5)))
        unit = self.op("Div", half, self.constant(np.float32(bins)))
        shaped = self.op("Reshape", unit, self.constant(np.asarray(low.shape, np.int64)))
        scaled = self.op("Mul", shaped, self.constant(high - low))
        return self.op("Add", self.constant(low), scaled)

    def state_slice(self, start: int, size: int) -> str:
        """`state[start : start + size]`."""
        ends = (np.asarray([start], np.int64), np.asarray([start + size], np.int64))
        return self.op("Slice", "state", self.constant(ends[0]), self.constant(ends[1]))

    def finish(self, chunk: str) -> onnx.ModelProto:
        """Range check with tolerance, clip, outputs. A NaN compares false, so it is invalid."""
        low = np.asarray(self._layout.low, np.float32)
        high = np.asarray(self._layout.high, np.float32)
        tolerance = np.float32(RANGE_TOLERANCE)
        self.check(self.op("GreaterOrEqual", chunk, self.constant(low - tolerance)))
        self.check(self.op("LessOrEqual", chunk, self.constant(high + tolerance)))
        raised = self.op("Max", chunk, self.constant(low))
        clipped = self.op("Min", raised, self.constant(high))
        self._nodes.append(helper.make_node("Identity", [clipped], ["actions"]))
        valid = self._checks[0]
        for check in self._checks[1:]:
            valid = self.op("And", valid, check)
        self._nodes.append(helper.make_node("Identity", [valid], ["valid"]))
        shape = [self._layout.horizon, self._layout.joints]
        outputs = [
            helper.make_tensor_value_info("actions", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("valid", TensorProto.BOOL, []),
        ]
        graph = helper.make_graph(
            self._nodes, "detokenizer", self._inputs, outputs, self._constants
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        model.ir_version = IR_VERSION
        onnx.checker.check_model(model, full_check=True)
        return model

    def _flat(self) -> str:
        return self.constant(np.asarray([-1], np.int64))
