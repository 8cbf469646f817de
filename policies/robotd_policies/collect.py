"""Collecting samples: noisy demonstrations of the expert, and the policy's own mistakes (DAgger).

Every sample is labelled the same way: the world is copied at the moment of the observation, and the
expert is rolled forward over the chunk. So a label never holds the noise that led there, and the
states that a trained policy visits can be labelled like the expert's own (Ross et al. 2011).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robotd.sim.tasks import TIME_LIMIT_S
from robotd_policies.provenance import provenance
from robotd_policies.rollout import Behaviour, Episode, Noise, Observation, Outcome, Plan
from robotd_policies.samples import SampleWriter
from robotd_policies.world import World

IMAGE_SIZE = 96
CAMERAS = ("front", "wrist")

# Seeds: disjoint ranges, so that no scene is in two of them.
DEMO_SEEDS = 0
DAGGER_SEEDS = 100_000
VALIDATION_SEEDS = 500_000
FINAL_SEEDS = 1_000_000  # final evaluation through the whole stack; never used in this package

Progress = Callable[[Outcome], None]


@dataclass(frozen=True)
class Collection:
    """What was collected."""

    episodes: int
    successes: int
    samples: int

    def as_json(self) -> dict[str, Any]:
        return {"episodes": self.episodes, "successes": self.successes, "samples": self.samples}


def run_expert(_: Observation) -> None:
    """The behaviour that runs the label."""


def mixed(policy: Behaviour, expert_share: float, rng: np.random.Generator) -> Behaviour:
    """The policy, with this share of its chunks replaced by the expert's."""

    def act(observation: Observation) -> Any:
        return None if rng.random() < expert_share else policy(observation)

    return act


def collect(
    world: World,
    behaviour: Behaviour,
    folder: Path,
    seeds: range,
    plan: Plan,
    seed: int,
    progress: Progress | None = None,
    about: dict[str, Any] | None = None,
) -> Collection:
    """Run one episode per seed and write every labelled sample to a new folder."""
    writer = SampleWriter(folder, world.cameras, world.image_size)
    successes = 0
    for outcome in episodes(world, behaviour, seeds, plan, seed):
        writer.add(outcome.samples)
        successes += outcome.success
        if progress is not None:
            progress(outcome)
    result = Collection(len(seeds), successes, len(writer))
    facts = {"arm": world.arm, "task": world.task, "seeds": [seeds.start, seeds.stop]}
    writer.close({**facts, **result.as_json(), **(about or {}), **provenance()})
    return result


def episodes(
    world: World, behaviour: Behaviour, seeds: range, plan: Plan, seed: int
) -> Iterator[Outcome]:
    """One outcome per seed; timing and noise follow from `seed` and the episode's own seed."""
    for episode_seed in seeds:
        rng = np.random.default_rng((seed, episode_seed))
        yield Episode(world, behaviour, episode_seed, plan, rng).run()


def demonstration_plan() -> Plan:
    """The expert in bursts of noise, with chunks of several lengths."""
    return Plan(seconds=TIME_LIMIT_S + 2, execution_horizon=(8, 12), label_every=4, noise=Noise())


def dagger_plan() -> Plan:
    """The policy as it will be run, now and then disturbed.

    Few samples of many scenes: a policy that has seen few scenes knows them by heart.
    """
    return Plan(seconds=TIME_LIMIT_S, label_every=6, noise=Noise(per_second=0.1))


def validation_plan() -> Plan:
    """The policy as it will be run."""
    return Plan(seconds=TIME_LIMIT_S)
