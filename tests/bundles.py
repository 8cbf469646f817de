"""Small real bundles for tests: ONNX graphs whose answer follows from their input.

The policy reads one shift from the brightness of its pictures (black -SHIFT, grey 0, white +SHIFT
units; 0 without pictures) and asks every joint to go there from where it is: the token of a joint
is the bin of `position + shift`. The detokenizer returns a straight line from the present position
to the centre of that bin, reached at the last step.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from robotd.config import JOINTS
from robotd.policy.bundle import DETOKENIZER, MANIFEST, POLICY

SHIFT = 10.0  # units
BINS = 256
_OPSET = 17
_IR_VERSION = 8
SMALL_CAMERAS = (("front", 24, 16), ("wrist", 16, 16))  # name, width, height


def make_bundle(
    folder: Path,
    *,
    name: str = "tiny",
    arm: str = "so101",
    cameras: tuple[tuple[str, int, int], ...] = SMALL_CAMERAS,
    horizon: int = 16,
    execution_horizon: int = 12,
    step_period_s: float = 1 / 30,
    first_id: int = 0,
    work: int = 0,
    changes: dict[str, Any] | None = None,
) -> Path:
    """Write a bundle and return its folder.

    `work` is the side of a square matrix that the policy multiplies with itself 20 times, to take
    time; `changes` replaces manifest values after the files were made, to spoil it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    low, high = joint_ends(len(JOINTS))
    onnx.save(policy_graph(cameras, low, high, first_id, work), folder / POLICY)
    onnx.save(detokenizer_graph(horizon, low, high, first_id), folder / DETOKENIZER)
    manifest: dict[str, Any] = {
        "format": 1,
        "name": name,
        "arm": arm,
        "joints": list(JOINTS),
        "state": {"parts": ["position", "applied"]},
        "images": [{"camera": c, "width": w, "height": h} for c, w, h in cameras],
        "action_horizon": horizon,
        "execution_horizon": execution_horizon,
        "step_period_s": step_period_s,
        "tokens": {
            "scheme": "bins",
            "count": len(JOINTS),
            "vocabulary": BINS,
            "first_id": first_id,
        },
        "generation": "parallel",
        "files": {},
    }
    write_manifest(folder, manifest | (changes or {}))
    return folder


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write `bundle.json` with the hashes of the files as they are now."""
    files = {
        file: hashlib.sha256((folder / file).read_bytes()).hexdigest()
        for file in (POLICY, DETOKENIZER)
    }
    (folder / MANIFEST).write_text(json.dumps(manifest | {"files": files}, indent=1))


def rehash(folder: Path) -> None:
    """Make the manifest agree with files that a test has replaced."""
    write_manifest(folder, json.loads((folder / MANIFEST).read_text()))


def joint_ends(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end of every joint's range, units; the last one is the gripper."""
    low, high = np.full(count, -100, np.float32), np.full(count, 100, np.float32)
    low[-1] = 0
    return low, high


def _constant(name: str, value: Any, kind: type = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value, kind), name)


def policy_graph(
    cameras: tuple[tuple[str, int, int], ...],
    low: np.ndarray,
    high: np.ndarray,
    first_id: int = 0,
    work: int = 0,
) -> onnx.ModelProto:
    """Tokens = bin of position + shift; the shift is the mean brightness of all pictures."""
    joints = len(low)
    inputs = [
        helper.make_tensor_value_info(f"image_{camera}", TensorProto.UINT8, [height, width, 3])
        for camera, width, height in cameras
    ]
    inputs.append(helper.make_tensor_value_info("state", TensorProto.FLOAT, [2 * joints]))
    constants = [
        _constant("zero", [0], np.int64),
        _constant("joints", [joints], np.int64),
        _constant("low", low),
        _constant("width", (high - low) / BINS),
        _constant("last", BINS - 1),
        _constant("origin", 0),
        _constant("grey", 127.5),
        _constant("gain", SHIFT / 127.5),
        _constant("first", first_id, np.int64),
        _constant("none", 0),
    ]
    nodes = [helper.make_node("Slice", ["state", "zero", "joints"], ["position"])]
    shifts = ["none"]
    for camera, _, _ in cameras:
        made = [f"{camera}_{step}" for step in ("float", "mean", "centred", "shift")]
        nodes += [
            helper.make_node("Cast", [f"image_{camera}"], [made[0]], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", [made[0]], [made[1]], keepdims=0),
            helper.make_node("Sub", [made[1], "grey"], [made[2]]),
            helper.make_node("Mul", [made[2], "gain"], [made[3]]),
        ]
        shifts.append(made[3])
    if work:
        nodes += _busy_work(constants, work)
        shifts.append("worked")
    nodes += [
        helper.make_node("Sum", shifts, ["total"]),
        helper.make_node("Div", ["total", "count"], ["shift"]),
        helper.make_node("Add", ["position", "shift"], ["goal"]),
        helper.make_node("Sub", ["goal", "low"], ["above"]),
        helper.make_node("Div", ["above", "width"], ["bins"]),
        helper.make_node("Floor", ["bins"], ["floor"]),
        helper.make_node("Clip", ["floor", "origin", "last"], ["clipped"]),
        helper.make_node("Cast", ["clipped"], ["ids"], to=TensorProto.INT64),
        helper.make_node("Add", ["ids", "first"], ["tokens"]),
    ]
    constants.append(_constant("count", max(1, len(cameras))))
    outputs = [helper.make_tensor_value_info("tokens", TensorProto.INT64, [joints])]
    return _model("policy", nodes, inputs, outputs, constants)


def _busy_work(constants: list[onnx.TensorProto], side: int) -> list[onnx.NodeProto]:
    """Nodes that take time and add zero: twenty products of a matrix that depends on the state."""
    constants += [
        _constant("matrix", np.eye(side) * 0.5),
        _constant("nought", 0),
    ]
    nodes = [
        helper.make_node("ReduceMax", ["state"], ["peak"], keepdims=0),
        helper.make_node("Mul", ["peak", "nought"], ["still"]),
        helper.make_node("Add", ["matrix", "still"], ["product0"]),
    ]
    nodes += [
        helper.make_node("MatMul", [f"product{step}", "matrix"], [f"product{step + 1}"])
        for step in range(20)
    ]
    nodes += [
        helper.make_node("ReduceMean", ["product20"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "nought"], ["worked"]),
    ]
    return nodes


def detokenizer_graph(
    horizon: int, low: np.ndarray, high: np.ndarray, first_id: int = 0
) -> onnx.ModelProto:
    """Straight line from the present position to the bin's centre; ids are checked."""
    joints = len(low)
    steps = (np.arange(horizon, dtype=np.float32) + 1)[:, None] / horizon
    inputs = [
        helper.make_tensor_value_info("tokens", TensorProto.INT64, [joints]),
        helper.make_tensor_value_info("state", TensorProto.FLOAT, [2 * joints]),
    ]
    constants = [
        _constant("zero", [0], np.int64),
        _constant("joints", [joints], np.int64),
        _constant("first", first_id, np.int64),
        _constant("last", first_id + BINS - 1, np.int64),
        _constant("half", 0.5),
        _constant("low", low),
        _constant("high", high),
        _constant("width", (high - low) / BINS),
        _constant("steps", steps),
    ]
    nodes = [
        helper.make_node("GreaterOrEqual", ["tokens", "first"], ["not_below"]),
        helper.make_node("LessOrEqual", ["tokens", "last"], ["not_above"]),
        helper.make_node("And", ["not_below", "not_above"], ["allowed"]),
        helper.make_node("Cast", ["allowed"], ["as_numbers"], to=TensorProto.INT64),
        helper.make_node("ReduceMin", ["as_numbers"], ["smallest"], keepdims=0),
        helper.make_node("Cast", ["smallest"], ["valid"], to=TensorProto.BOOL),
        helper.make_node("Clip", ["tokens", "first", "last"], ["clipped"]),
        helper.make_node("Sub", ["clipped", "first"], ["bins"]),
        helper.make_node("Cast", ["bins"], ["float_bins"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["float_bins", "half"], ["centres"]),
        helper.make_node("Mul", ["centres", "width"], ["above"]),
        helper.make_node("Add", ["above", "low"], ["goal"]),
        helper.make_node("Slice", ["state", "zero", "joints"], ["position"]),
        helper.make_node("Sub", ["goal", "position"], ["way"]),
        helper.make_node("Mul", ["steps", "way"], ["moved"]),
        helper.make_node("Add", ["position", "moved"], ["line"]),
        helper.make_node("Max", ["line", "low"], ["raised"]),
        helper.make_node("Min", ["raised", "high"], ["actions"]),
    ]
    outputs = [
        helper.make_tensor_value_info("actions", TensorProto.FLOAT, [horizon, joints]),
        helper.make_tensor_value_info("valid", TensorProto.BOOL, []),
    ]
    return _model("detokenizer", nodes, inputs, outputs, constants)


def _model(
    name: str,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: list[onnx.TensorProto],
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, name, inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)])
    model.ir_version = _IR_VERSION
    onnx.checker.check_model(model, full_check=True)
    return model
