"""The two graphs of a bundle in onnxruntime: observation -> tokens -> actions.

One thread per session: the models are small, and the cores belong to the control loop. Names, types
and shapes are compared with the manifest before anything runs.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from robotd.errors import BundleError
from robotd.policy.bundle import DETOKENIZER, POLICY, Bundle

Image = npt.NDArray[np.uint8]  # [height, width, 3], RGB
Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

_QUIET = 4  # onnxruntime's severity "fatal": its errors reach us as exceptions
_PROVIDERS = ["CPUExecutionProvider"]


@dataclass(frozen=True)
class Tensor:
    """An input or output that a graph must have. `kind` is onnxruntime's type name."""

    name: str
    kind: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.kind}{list(self.shape)}"


class Graph:
    """One verified graph. BundleError when it cannot be loaded or differs from the manifest."""

    def __init__(
        self, bundle: Bundle, file: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]
    ) -> None:
        self.path = bundle.folder / file
        data = bundle.read(file)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = _QUIET
        try:
            self._session = ort.InferenceSession(data, options, providers=_PROVIDERS)
        except Exception as error:  # onnxruntime's errors share no base class
            raise BundleError(f"{self.path}: is no usable ONNX graph: {one_line(error)}") from error
        self._require("input", self._session.get_inputs(), inputs)
        self._require("output", self._session.get_outputs(), outputs)
        self._outputs = [tensor.name for tensor in outputs]

    def _require(self, role: str, found: Sequence[ort.NodeArg], wanted: Sequence[Tensor]) -> None:
        have = {arg.name: Tensor(arg.name, arg.type, tuple(arg.shape)) for arg in found}
        for tensor in wanted:
            if tensor.name not in have:
                names = ", ".join(have) or "none"
                raise BundleError(f"{self.path}: has no {role} {tensor.name!r}; it has {names}")
            if have[tensor.name] != tensor:
                raise BundleError(
                    f"{self.path}: {role} is {have[tensor.name]}; the manifest says {tensor}"
                )
        if extra := sorted(set(have) - {tensor.name for tensor in wanted}):
            raise BundleError(
                f"{self.path}: has {role} {extra[0]!r}, which the manifest does not know"
            )

    def run(self, feeds: dict[str, npt.NDArray[np.generic]]) -> list[npt.NDArray[np.generic]]:
        """All outputs in the manifest's order; BundleError when the graph fails."""
        try:
            outputs: list[npt.NDArray[np.generic]] = self._session.run(self._outputs, feeds)
        except Exception as error:
            raise BundleError(f"{self.path}: failed while running: {one_line(error)}") from error
        return outputs


class PolicySession:
    """`policy.onnx`: images and state to token ids."""

    def __init__(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        self.manifest = manifest
        images = [
            Tensor(image.input, "tensor(uint8)", (image.height, image.width, 3))
            for image in manifest.images
        ]
        state = Tensor("state", "tensor(float)", (manifest.state_size,))
        tokens = Tensor("tokens", "tensor(int64)", (manifest.tokens.count,))
        self._graph = Graph(bundle, POLICY, [*images, state], [tokens])
        self._inputs = {image.camera: image.input for image in manifest.images}

    def act(self, images: Mapping[str, Image], state: Floats) -> Ids:
        """Token ids int64 `[count]` for the images (by camera name) and the state float32 `[S]`."""
        feeds: dict[str, npt.NDArray[np.generic]] = {
            name: images[camera] for camera, name in self._inputs.items()
        }
        feeds["state"] = state
        return self._graph.run(feeds)[0].astype(np.int64, copy=False)

    def warm_up(self, runs: int = 3) -> list[float]:
        """Run on blank input until buffers are allocated; each run's time, milliseconds."""
        images = {
            image.camera: np.zeros((image.height, image.width, 3), np.uint8)
            for image in self.manifest.images
        }
        state = np.zeros(self.manifest.state_size, np.float32)
        times = []
        for _ in range(runs):
            begun = time.perf_counter_ns()
            self.act(images, state)
            times.append((time.perf_counter_ns() - begun) / 1e6)
        return times


class Detokenizer:
    """`detokenizer.onnx`: token ids and present state to an action chunk."""

    def __init__(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        self.manifest = manifest
        self._graph = Graph(
            bundle,
            DETOKENIZER,
            [
                Tensor("tokens", "tensor(int64)", (manifest.tokens.count,)),
                Tensor("state", "tensor(float)", (manifest.state_size,)),
            ],
            [
                Tensor("actions", "tensor(float)", (manifest.action_horizon, len(manifest.joints))),
                Tensor("valid", "tensor(bool)", ()),
            ],
        )

    def decode(self, tokens: Ids, state: Floats) -> tuple[Floats, bool]:
        """Targets float32 `[horizon, joints]`, normalised units, and whether they are valid.

        Not valid: the targets mean nothing and must not be used.
        """
        actions, valid = self._graph.run({"tokens": tokens, "state": state})
        return actions.astype(np.float32, copy=False), bool(valid)


def one_line(error: BaseException) -> str:
    """First line of an error's text, without onnxruntime's number and code in front."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].split(" : ")[-1].strip().rstrip(".")
