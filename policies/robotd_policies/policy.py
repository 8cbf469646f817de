"""A trained network as a policy: normalisation around it, and the module that is exported."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch import Tensor, nn

from robotd.errors import ChunkError
from robotd.policy.bundle import DETOKENIZER, POLICY, Bundle
from robotd_policies.model import PolicyNet
from robotd_policies.rollout import HORIZON, Observation
from robotd_policies.samples import Samples
from robotd_policies.tokenizers import Tokenizer

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Normaliser:
    """Means and deviations of state and pose; pictures go from [0, 255] to [-1, 1]."""

    state_mean: Tensor
    state_std: Tensor
    pose_mean: Tensor
    pose_std: Tensor

    @classmethod
    def fit(cls, samples: Samples) -> "Normaliser":
        """From training samples; a value that hardly varies is divided by 1 unit, or 1 cm."""
        parts = []
        for rows, least in ((samples.state, 1.0), (samples.pose, 0.01)):
            parts += [rows.mean(0), np.maximum(rows.std(0), least)]
        return cls(*(torch.from_numpy(part.astype(np.float32)) for part in parts))

    @staticmethod
    def image(image: Tensor) -> Tensor:
        """uint8 `[B, S, S, 3]` -> float `[B, 3, S, S]`."""
        return (image.permute(0, 3, 1, 2).float() / 127.5).sub_(1.0)

    def state(self, state: Tensor) -> Tensor:
        return (state - self.state_mean) / self.state_std

    def pose(self, pose: Tensor) -> Tensor:
        return (pose - self.pose_mean) / self.pose_std

    def as_json(self) -> dict[str, Any]:
        return {name: value.tolist() for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Normaliser":
        return cls(**{name: torch.tensor(value) for name, value in fields.items()})


class ExportedPolicy(nn.Module):
    """uint8 images `[S, S, 3]` and state `[S]` in, token ids `[N]` out: what the worker runs.

    Ids that the tokenizer does not allow at a position never win the argmax.
    """

    def __init__(self, net: PolicyNet, normaliser: Normaliser, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.net = net
        self.normaliser = normaliser
        mask = torch.from_numpy(tokenizer.allowed())
        self.register_buffer("penalty", torch.where(mask, 0.0, -1e9))
        self.register_buffer("state_mean", normaliser.state_mean)
        self.register_buffer("state_std", normaliser.state_std)

    def forward(self, images: list[Tensor], state: Tensor) -> Tensor:
        scaled = [Normaliser.image(image.unsqueeze(0)) for image in images]
        normalised = (state - self.state_mean) / self.state_std
        logits, _ = self.net(scaled, normalised.unsqueeze(0))
        return (logits[0] + self.penalty).argmax(-1)


class TorchPolicy:
    """A network as a behaviour for rollouts. A chunk that does not decode holds the arm."""

    def __init__(self, net: PolicyNet, normaliser: Normaliser, tokenizer: Tokenizer) -> None:
        self._module = ExportedPolicy(net, normaliser, tokenizer).eval()
        self._cameras = net.config.cameras
        self._tokenizer = tokenizer
        self.invalid = 0

    @torch.no_grad()
    def act(self, observation: Observation) -> Floats:
        """The chunk `[HORIZON, 6]` for an observation."""
        images = [torch.from_numpy(observation.images[camera]) for camera in self._cameras]
        tokens = self._module(images, torch.from_numpy(observation.state)).numpy()
        joints = self._tokenizer.layout.joints
        applied = observation.state[joints:]
        try:
            return self._tokenizer.decode(tokens, applied)
        except ChunkError:
            self.invalid += 1
            return np.tile(applied, (HORIZON, 1))


class BundlePolicy:
    """A bundle's two graphs as a behaviour for rollouts, one thread, like the worker's."""

    def __init__(self, folder: Path) -> None:
        self.manifest = Bundle.load(folder).manifest
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._policy, self._decoder = (
            onnxruntime.InferenceSession(folder / name, options, ["CPUExecutionProvider"])
            for name in (POLICY, DETOKENIZER)
        )
        self.invalid = 0

    def tokens(self, observation: Observation) -> npt.NDArray[np.int64]:
        """Token ids for an observation."""
        feed: dict[str, npt.NDArray[Any]] = {
            image.input: observation.images[image.camera] for image in self.manifest.images
        }
        answer = self._policy.run(["tokens"], {**feed, "state": observation.state})[0]
        return np.asarray(answer)

    def act(self, observation: Observation) -> Floats:
        """The chunk `[HORIZON, 6]`; an invalid one holds the arm."""
        feed = {"tokens": self.tokens(observation), "state": observation.state}
        actions, valid = self._decoder.run(["actions", "valid"], feed)
        if not valid:
            self.invalid += 1
            return np.tile(observation.state[len(self.manifest.joints) :], (HORIZON, 1))
        return np.asarray(actions)
