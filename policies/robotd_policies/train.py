"""Training: behaviour cloning on labelled samples, then DAgger rounds, on one CPU thread.

One cosine schedule over all steps; at evenly spaced steps the current policy is rolled out and the
states it visits, labelled by the expert, join the samples. What is rolled out and exported is the
moving average of the weights. All follows from the seed; a checkpoint holds what it takes to go on.
"""

import copy
import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from robotd_policies import collect
from robotd_policies.model import NetConfig, PolicyNet
from robotd_policies.policy import Normaliser, TorchPolicy
from robotd_policies.provenance import provenance
from robotd_policies.rollout import HORIZON
from robotd_policies.samples import Samples
from robotd_policies.tokenizers import SCHEMES, ChunkLayout, Tokenizer
from robotd_policies.tokenizers import load as load_tokenizer
from robotd_policies.world import World

CHECKPOINT = "checkpoint.pt"
TOKENIZER = "tokenizer.json"
LOG = "log.jsonl"

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class TrainConfig:
    """Everything a training run depends on, beside its samples."""

    arm: str
    task: str = "lift"
    seed: int = 0
    steps: int = 4000
    batch: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.03
    warm_up: int = 100
    scheme: str = "dct_bins"
    bins: int = 256
    coefficients: int = 5
    smoothing_bins: float = 1.5
    pose_weight: float = 2.0
    average: float = 0.998
    dagger_rounds: int = 4
    dagger_episodes: int = 60
    dagger_from: float = 0.1  # share of the steps before the first round
    dagger_until: float = 0.7  # the last round is at this share
    dagger_help: float = 0.4  # the expert's share of the first round's chunks; halves each round
    dagger_seeds: int = collect.DAGGER_SEEDS
    from_run: str | None = None  # the run whose weights and samples this one starts from


class Trainer:
    """One run in one folder: `checkpoint.pt`, `tokenizer.json`, `log.jsonl`, `dagger_<round>/`."""

    def __init__(self, folder: Path, config: TrainConfig, demos: list[Path]) -> None:
        torch.manual_seed(config.seed)
        self.folder = folder
        self.config = config
        self.demos = demos
        self.step = 0
        self.steps_before = 0  # of the runs that this one continues
        self.round = 0
        self.seconds = 0.0
        self.history: list[dict[str, Any]] = []
        self.commands: list[dict[str, Any]] = [provenance()]
        self._rng = np.random.default_rng(config.seed)
        self.samples = Samples(demos)
        self._check_samples()
        folder.mkdir(parents=True, exist_ok=True)
        layout = ChunkLayout.arm(HORIZON)
        self.tokenizer: Tokenizer = SCHEMES[config.scheme].fit(
            self.samples.actions,
            self.samples.state[:, layout.joints :],
            layout,
            bins=config.bins,
            coefficients=config.coefficients,
        )
        self.normaliser = Normaliser.fit(self.samples)
        about = self.samples.about[0]
        self.net = PolicyNet(
            NetConfig(
                cameras=tuple(about["cameras"]),
                image_size=about["size"],
                state_size=self.samples.state.shape[1],
                tokens=self.tokenizer.count,
                vocabulary=self.tokenizer.vocabulary,
                pose=self.samples.pose.shape[1],
            )
        ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._prepare()

    def _check_samples(self) -> None:
        for about, folder in zip(self.samples.about, self.demos, strict=True):
            if (about["arm"], about["task"]) != (self.config.arm, self.config.task):
                raise ValueError(
                    f"{folder} holds samples of {about['arm']} {about['task']}, "
                    f"not of {self.config.arm} {self.config.task}"
                )

    def _prepare(self) -> None:
        self.average = copy.deepcopy(self.net).eval().requires_grad_(False)
        self._optimizer = torch.optim.AdamW(
            self.net.parameters(), self.config.learning_rate, weight_decay=self.config.weight_decay
        )
        bins = torch.arange(self.tokenizer.vocabulary)
        sigma = max(self.config.smoothing_bins, 1e-3)
        distance = (bins[:, None] - bins[None, :]).float() / sigma
        self._smooth = torch.softmax(-0.5 * distance.square(), 1)  # row: target of that bin
        # Fresh normal numbers for every picture would take as long as the network itself.
        side = self.net.config.image_size
        self._noise = torch.randn(2 * self.config.batch, side, side, 3).permute(0, 3, 1, 2)
        self._index()

    def _index(self) -> None:
        """Tokens of all samples, and which of them are trained on (one episode in 20 is not)."""
        joints = self.tokenizer.layout.joints
        self._tokens = self.tokenizer.encode(self.samples.actions, self.samples.state[:, joints:])
        held = self.samples.episode % 20 == 19
        self._train_rows = np.flatnonzero(~held) if held.any() else np.arange(len(held))
        self._held_rows = np.flatnonzero(held) if held.any() else np.arange(len(held))

    # -- one step

    def rate(self) -> float:
        """Learning rate of the current step: warm-up, then half a cosine down to 1 %."""
        warm = min(1.0, (self.step + 1) / self.config.warm_up)
        part = min(1.0, self.step / self.config.steps)
        return self.config.learning_rate * warm * (0.01 + 0.99 * (1 + math.cos(math.pi * part)) / 2)

    def train_step(self) -> tuple[float, float]:
        """One batch; loss and share of tokens within two bins of the expert's."""
        rows = self._rng.choice(self._train_rows, self.config.batch)
        images = [self._augment(image) for image in self._images(rows)]
        state = self.normaliser.state(torch.from_numpy(self.samples.state[rows]))
        pose = self.normaliser.pose(torch.from_numpy(self.samples.pose[rows]))
        target = torch.from_numpy(self._tokens[rows])
        for group in self._optimizer.param_groups:
            group["lr"] = self.rate()
        with torch.autocast("cpu", torch.bfloat16):
            logits, guessed = self.net(images, state)
        log_p = logits.float().log_softmax(-1)
        loss = -(self._smooth[target] * log_p).sum(-1).mean()
        total = loss + self.config.pose_weight * (guessed.float() - pose).square().mean()
        self._optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self._optimizer.step()
        self._update_average()
        self.step += 1
        near = (logits.argmax(-1) - target).abs() <= 2
        return float(loss.detach()), float(near.float().mean())

    @torch.no_grad()
    def _update_average(self) -> None:
        keep = min(self.config.average, (1 + self.step) / (10 + self.step))
        slow, fast = list(self.average.parameters()), list(self.net.parameters())
        torch._foreach_lerp_(slow, fast, 1.0 - keep)

    def _images(self, rows: npt.NDArray[np.int64]) -> list[Tensor]:
        cameras = self.net.config.cameras
        return [torch.from_numpy(self.samples.images(camera, rows)) for camera in cameras]

    def _augment(self, images: Tensor) -> Tensor:
        """Normalised images `[B, 3, S, S]`: brightness and colour, one-pixel shifts, noise."""
        x = self.normaliser.image(images)  # channels last in memory; all below is in place
        count = len(x)
        gain = self._uniform(0.85, 1.15, (count, 1, 1, 1))
        tint = self._uniform(-0.06, 0.06, (count, 3, 1, 1))
        x.mul_(gain).add_(gain - 1.0 + tint)
        first = int(self._rng.integers(len(self._noise) - count + 1))
        x.add_(self._noise[first : first + count], alpha=float(self._rng.uniform(0.0, 0.04)))
        if self._rng.random() < 0.3:
            down, right = self._rng.integers(-1, 2, 2)
            x = torch.roll(x, (int(down), int(right)), (2, 3))
        return x.contiguous(memory_format=torch.channels_last)

    def _uniform(self, low: float, high: float, shape: tuple[int, ...]) -> Tensor:
        return torch.from_numpy(self._rng.uniform(low, high, shape).astype(np.float32))

    # -- a whole run

    def run(self, world: World, report: Report, minutes: float | None = None) -> bool:
        """Train to the last step; False when the time limit came first (resume goes on)."""
        began, before = time.monotonic(), self.seconds
        losses: list[tuple[float, float]] = []
        while self.step < self.config.steps:
            if self.round < self.config.dagger_rounds and self.step >= self._round_at():
                self._dagger(world, report)
            losses.append(self.train_step())
            self.seconds = before + time.monotonic() - began
            if self.step % 50 == 0 or self.step == self.config.steps:
                loss, near = np.mean(losses, 0)
                losses.clear()
                report({"step": self.step, "loss": float(loss), "near": float(near)})
            if self.step % 500 == 0:
                self.save()
            if minutes is not None and self.seconds - before > 60 * minutes:
                break
        self.save()
        return self.step >= self.config.steps

    def _round_at(self) -> int:
        first, last = self.config.dagger_from, self.config.dagger_until
        part = self.round / max(1, self.config.dagger_rounds - 1)
        return round(self.config.steps * (first + (last - first) * part))

    def _dagger(self, world: World, report: Report) -> None:
        """Roll the policy out on new scenes and add what it saw; early rounds get more help."""
        start = self.config.dagger_seeds + self.round * self.config.dagger_episodes
        share = self.config.dagger_help * 0.5**self.round
        behaviour = collect.mixed(self.policy().act, share, np.random.default_rng(start))
        folder = self.folder / f"dagger_{self.round}"
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped in this round
        result = collect.collect(
            world,
            behaviour,
            folder,
            range(start, start + self.config.dagger_episodes),
            collect.dagger_plan(),
            self.config.seed,
        )
        self.round += 1
        self._load_samples()
        self.history.append({"round": self.round, "step": self.step, **result.as_json()})
        self.save()
        report(self.history[-1])

    def _load_samples(self) -> None:
        folders = [self.folder / f"dagger_{number}" for number in range(self.round)]
        self.samples = Samples([*self.demos, *folders])
        self._index()

    def policy(self) -> TorchPolicy:
        """The averaged weights as a behaviour."""
        return TorchPolicy(self.average, self.normaliser, self.tokenizer)

    @torch.no_grad()
    def held_out(self, limit: int = 512) -> dict[str, float]:
        """Token accuracy (exact, within two bins) and action error (units) on held-out episodes."""
        rows = self._held_rows[np.linspace(0, len(self._held_rows) - 1, limit).astype(int)]
        images = [self.normaliser.image(image) for image in self._images(rows)]
        state = self.normaliser.state(torch.from_numpy(self.samples.state[rows]))
        logits, _ = self.average(images, state)
        distance = (logits.argmax(-1) - torch.from_numpy(self._tokens[rows])).abs()
        return {
            "token_accuracy": float((distance == 0).float().mean()),
            "tokens_within_2": float((distance <= 2).float().mean()),
            "mean_bins_off": float(distance.float().mean()),
        }

    # -- checkpoints

    @classmethod
    def continued(cls, folder: Path, config: TrainConfig, run: Path) -> "Trainer":
        """A new run that starts with another's averaged weights, samples and tokenizer.

        Its DAgger scenes follow those of the earlier runs.
        """
        state = torch.load(run / CHECKPOINT, weights_only=True)
        before = TrainConfig(**state["config"])
        seeds = before.dagger_seeds + before.dagger_rounds * before.dagger_episodes
        config = replace(config, from_run=str(run), dagger_seeds=seeds)
        folders = [Path(demo) for demo in state["demos"]]
        folders += [run / f"dagger_{number}" for number in range(state["round"])]
        trainer = cls(folder, config, folders)
        trainer.tokenizer = load_tokenizer(run / TOKENIZER)
        trainer.normaliser = Normaliser.from_json(state["normaliser"])
        trainer.net.load_state_dict(state["average"])
        trainer._prepare()
        trainer.commands = [*state["commands"], *trainer.commands]
        trainer.history = state["history"]
        trainer.seconds = state["seconds"]
        trainer.steps_before = state["steps_before"] + state["step"]
        return trainer

    def save(self) -> None:
        """Write the checkpoint and the tokenizer; the old checkpoint stays until this is done."""
        self.tokenizer.save(self.folder / TOKENIZER)
        state = {
            "config": asdict(self.config),
            "net_config": self.net.config.as_json(),
            "demos": [str(folder) for folder in self.demos],
            "net": self.net.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "normaliser": self.normaliser.as_json(),
            "rng": json.dumps(self._rng.bit_generator.state),
            "torch_rng": torch.get_rng_state(),
            "step": self.step,
            "steps_before": self.steps_before,
            "round": self.round,
            "seconds": self.seconds,
            "history": self.history,
            "commands": self.commands,
            "samples": self.samples.about,
        }
        partial = self.folder / f"{CHECKPOINT}.partial"
        torch.save(state, partial)
        partial.replace(self.folder / CHECKPOINT)

    @classmethod
    def resume(cls, folder: Path) -> "Trainer":
        """Continue a run exactly where its checkpoint was written."""
        state = torch.load(folder / CHECKPOINT, weights_only=True)
        demos = [Path(demo) for demo in state["demos"]]
        trainer = cls(folder, TrainConfig(**state["config"]), demos)
        trainer.tokenizer = load_tokenizer(folder / TOKENIZER)
        trainer.normaliser = Normaliser.from_json(state["normaliser"])
        trainer.net.load_state_dict(state["net"])
        trainer._prepare()
        trainer.average.load_state_dict(state["average"])
        trainer._optimizer.load_state_dict(state["optimizer"])
        trainer._rng.bit_generator.state = json.loads(state["rng"])
        torch.set_rng_state(state["torch_rng"])
        trainer.step, trainer.round = state["step"], state["round"]
        trainer.seconds, trainer.history = state["seconds"], state["history"]
        trainer.steps_before = state["steps_before"]
        trainer.commands = state["commands"]
        trainer._load_samples()
        return trainer
