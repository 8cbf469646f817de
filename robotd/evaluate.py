"""Success rates: episodes on seeds, with a 95 % interval, beside baselines.

Two ways to run the same episodes. "live" starts the real daemon: bus bytes, real-time loop, camera
and worker processes. "stepped" runs the same control, observer and policy code on a virtual clock
in one process, faster than real time (robotd/stepped.py). A report says which one it comes from.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from robotd.config import CameraConfig, Config, PolicyConfig, parse
from robotd.episodes import EpisodeResult, LiveStage, temporary_runtime
from robotd.errors import BundleError, ConfigError
from robotd.policy.bundle import Bundle
from robotd.sim.arms import arm as simulated_arm
from robotd.sources import BlindSource, ChunkSource, ExpertSource
from robotd.stepped import SteppedStage

ROOT = Path(__file__).resolve().parents[1]
Baseline = Literal["expert", "blind", "blank-images"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)
EVALUATION_SEED = 1_000_000  # seeds from here on are never used for training or tuning


def shipped_bundle(model: str, task: str = "lift") -> Path:
    """The bundle that comes with the project; BundleError where there is none."""
    path = ROOT / "policies" / "bundles" / f"{model}_{task}"
    if not path.is_dir():
        raise BundleError(
            f"{path}: not there; run from a clone of the repository, or give --bundle"
        )
    return path


def stage_config(
    model: str,
    bundle: Path | None,
    runtime_dir: Path,
    *,
    task: str = "lift",
    blank_images: bool = False,
    faults: str = "",
) -> Config:
    """A simulated arm on its task, with the bundle's cameras; no file needed."""
    calibration = ROOT / "calibration" / f"{model}_sim.json"
    if not calibration.is_file():
        raise ConfigError(f"{calibration}: not there; run from a clone of the repository")
    arm = {
        "id": "follower",
        "model": model,
        "port": "sim",
        "calibration": str(calibration),
        "park": simulated_arm(model).park_norm,
    }
    raw: dict[str, Any] = {"name": f"{model}_{task}", "runtime_dir": str(runtime_dir)}
    raw |= {"arms": [arm], "sim": {"task": task, "blank_images": blank_images, "faults": faults}}
    config = parse(raw, runtime_dir / "generated")
    if bundle is None:
        return config
    manifest = Bundle.load(bundle).manifest
    if manifest.arm != model:
        raise BundleError(f"{bundle}: made for {manifest.arm}, not {model}")
    cameras = [
        CameraConfig(name=i.camera, driver="sim", width=i.width, height=i.height, fps=30)
        for i in manifest.images
    ]
    # A fresh chunk at every step, all that cover the moment averaged: see docs/architecture.md.
    policy = PolicyConfig(bundle=bundle.resolve(), replan="continuous", takeover="ensemble")
    return config.model_copy(update={"policy": policy, "cameras": cameras})


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927); z = 1.96 covers 95 %."""
    if trials == 0:
        return 0.0, 1.0
    p = successes / trials
    middle = p + z * z / (2 * trials)
    half = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


@dataclass(frozen=True)
class Evaluation:
    """What was run and what came of it."""

    arm: str
    subject: str  # bundle name or baseline
    clock: Literal["live", "stepped"]
    seed_start: int
    results: tuple[EpisodeResult, ...]
    wall_s: float

    def summary(self) -> dict[str, Any]:
        """JSON-ready figures."""
        done = sum(result.success for result in self.results)
        low, high = wilson(done, len(self.results))
        times = [result.seconds for result in self.results if result.success]
        notes: dict[str, int] = {}
        for result in self.results:
            if not result.success:
                notes[result.note] = notes.get(result.note, 0) + 1
        return {
            "arm": self.arm,
            "subject": self.subject,
            "clock": self.clock,
            "seed_start": self.seed_start,
            "episodes": len(self.results),
            "successes": done,
            "rate": done / len(self.results) if self.results else 0.0,
            "interval95": [round(low, 4), round(high, 4)],
            "seconds_to_success_median": round(float(np.median(times)), 2) if times else None,
            "failures": notes,
            "wall_s": round(self.wall_s, 1),
            "date": time.strftime("%Y-%m-%d"),
        }

    def full(self) -> dict[str, Any]:
        """The summary and every episode."""
        return self.summary() | {"results": [asdict(result) for result in self.results]}


def evaluate(
    model: str,
    bundle: Path,
    episodes: int,
    seed_start: int = EVALUATION_SEED,
    baseline: Baseline | None = None,
    stepped: bool = False,
    progress: Callable[[EpisodeResult], None] = lambda result: None,
) -> Evaluation:
    """Run the episodes one after the other and report each as it ends."""
    begun = time.monotonic()
    runtime = temporary_runtime()
    source: ChunkSource | None = None
    if baseline == "expert":
        source = ExpertSource(model)
    elif baseline == "blind":
        source = BlindSource(model)
    config = stage_config(
        model,
        bundle if source is None else None,
        runtime,
        blank_images=baseline == "blank-images",
    )
    stage = SteppedStage(config, source) if stepped else LiveStage(config, source)
    results = []
    try:
        with stage:
            for seed in range(seed_start, seed_start + episodes):
                results.append(stage.episode(seed))
                progress(results[-1])
    finally:
        stage.discard()
    subject = baseline or Bundle.load(bundle).manifest.name
    return Evaluation(
        model,
        subject,
        "stepped" if stepped else "live",
        seed_start,
        tuple(results),
        time.monotonic() - begun,
    )
