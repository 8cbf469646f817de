"""Demonstrations, training, export: a few steps through all of it, and the shipped bundles."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from robotd_policies import cli, collect
from robotd_policies.policy import BundlePolicy
from robotd_policies.rollout import EXECUTION_HORIZON, Observation, Plan
from robotd_policies.samples import Samples
from robotd_policies.train import TrainConfig, Trainer
from robotd_policies.world import World
from typer.testing import CliRunner

from robotd.policy.bundle import Bundle

BUNDLES = Path(__file__).parents[2] / "policies" / "bundles"


def short(label_every: int | None) -> Plan:
    return Plan(seconds=1.5, label_every=label_every)


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demos") / "so101"
    with World("so101") as world:
        collect.collect(world, collect.run_expert, folder, range(2), short(3), seed=0)
    return folder


def test_samples_hold_what_was_seen_and_what_the_expert_would_do(demos: Path) -> None:
    samples = Samples([demos])
    assert len(samples) == samples.about[0]["samples"] > 10
    picture = samples.images("wrist", np.array([0, len(samples) - 1]))
    assert picture.shape == (2, 96, 96, 3)
    assert picture.std() > 5
    # A label starts at the last targets and moves on at a speed that the limits allow.
    applied = samples.state[:, 6:]
    assert np.abs(samples.actions[:, 0] - applied).max() < 200 / 30 + 1
    assert np.abs(np.diff(samples.actions, axis=1)).max() < 200 / 30 + 1
    assert np.abs(samples.actions[:, -1] - applied).max() > 10


def test_the_same_seed_collects_the_same_samples(demos: Path, tmp_path: Path) -> None:
    with World("so101") as world:
        collect.collect(world, collect.run_expert, tmp_path / "b", range(2), short(3), seed=0)
    first, second = Samples([demos]), Samples([tmp_path / "b"])
    np.testing.assert_array_equal(first.state, second.state)
    np.testing.assert_array_equal(first.actions, second.actions)
    rows = np.arange(len(first))
    np.testing.assert_array_equal(first.images("front", rows), second.images("front", rows))


def test_labelling_leaves_the_world_where_it_was() -> None:
    outcomes = []
    for label_every in (12, None):
        with World("koch") as world:
            plan = Plan(seconds=1.0, label_every=label_every, execution_horizon=(12, 12))
            rng = np.random.default_rng(3)
            seen: list[np.ndarray] = []

            def hold(observation: Observation, seen: list[np.ndarray] = seen) -> np.ndarray:
                seen.append(observation.state)
                return np.tile(observation.state[6:] + np.float32(3), (16, 1))

            collect.Episode(world, hold, 7, plan, rng).run()
            outcomes.append(world.position())
    np.testing.assert_allclose(outcomes[0], outcomes[1], atol=0.3)


def test_a_few_steps_train_resume_export_and_run(demos: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    config = TrainConfig(
        "so101", steps=6, batch=8, dagger_rounds=1, dagger_episodes=1, dagger_from=0.5
    )
    trainer = Trainer(tmp_path / "run", config, [demos])
    reports: list[dict[str, object]] = []
    with World("so101") as world:
        assert not trainer.run(world, reports.append, minutes=0.0)
        again = Trainer.resume(tmp_path / "run")
        assert again.step == trainer.step == 1
        assert again.run(world, reports.append)
    assert [report["round"] for report in reports if "round" in report] == [1]
    assert again.samples.about[1]["seeds"][0] == collect.DAGGER_SEEDS

    more = Trainer.continued(tmp_path / "more", TrainConfig("so101", steps=3), tmp_path / "run")
    assert len(more.samples) == len(again.samples)
    assert more.config.dagger_seeds == collect.DAGGER_SEEDS + 1
    assert more.steps_before == 6
    weights, before = more.net.state_dict(), again.average.state_dict()
    assert all(torch.equal(weights[name], before[name]) for name in before)

    out = tmp_path / "bundle"
    result = CliRunner().invoke(
        cli.app,
        ["export", "--run", str(tmp_path / "run"), "--out", str(out), "--validate", "1", "--json"],
    )
    assert result.exit_code == 0, result.output
    manifest = Bundle.load(out).manifest
    assert manifest.tokens.count == 30
    assert manifest.execution_horizon == EXECUTION_HORIZON
    assert manifest.results["in-process rollouts (validation)"]["episodes"] == 1
    assert manifest.provenance["training"]["steps_done"] == 6
    assert "so101" in (out / "README.md").read_text()


def test_training_learns_more_than_how_often_each_token_occurs(demos: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    config = TrainConfig("so101", steps=400, batch=16, warm_up=5, dagger_rounds=0)
    trainer = Trainer(tmp_path / "run", config, [demos])
    # The best answer that ignores its input: each position's mean smoothed target.
    target = trainer._smooth[torch.from_numpy(trainer._tokens[trainer._train_rows])]
    usual = target.mean(0)
    ignorant = float(-(target * usual.clamp_min(1e-9).log()).sum(-1).mean())
    losses = [trainer.train_step()[0] for _ in range(100)]
    assert np.mean(losses[-10:]) < ignorant


def test_wrong_input_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    run = CliRunner().invoke
    for arguments in (
        ["demos", "--arm", "so102", "--out", str(tmp_path / "a")],
        ["train", "--demos", str(tmp_path / "none"), "--out", str(tmp_path / "b")],
        ["rollout", "--bundle", str(tmp_path / "none")],
        ["rollout", "--seed-start", "1000000"],
        ["export", "--run", str(tmp_path / "none"), "--out", str(tmp_path / "c")],
    ):
        result = run(cli.app, arguments)
        assert result.exit_code == 2, arguments
        assert "Traceback" not in result.output


def test_robotd_imports_no_torch() -> None:
    code = (
        "import sys, robotd.policy.bundle, robotd.sim.physics, robotd.sim.expert, "
        "robotd.sim.render; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["so101_lift", "koch_lift"])
def test_shipped_bundle_answers_valid_tokens_for_a_rendered_scene(name: str) -> None:
    policy = BundlePolicy(BUNDLES / name)
    manifest = policy.manifest
    assert manifest.name == name
    assert sum(path.stat().st_size for path in (BUNDLES / name).iterdir()) < 4e6
    joints = len(manifest.joints)
    seen = []
    with World(manifest.arm) as world:
        for seed in (500_000, 500_001, 500_002):
            world.reset(seed)
            images = {camera: world.image(camera) for camera in world.cameras}
            state = np.tile(world.position(), 2).astype(np.float32)
            observation = Observation(images, state)
            tokens = policy.tokens(observation)
            assert tokens.shape == (manifest.tokens.count,)
            assert tokens.dtype == np.int64
            chunk = policy.act(observation)
            assert policy.invalid == 0
            assert chunk.shape == (manifest.action_horizon, joints)
            assert np.abs(chunk[0] - state[joints:]).max() < 10
            seen.append(tokens)
    assert (seen[0] != seen[1]).any()  # it looks at the scene


@pytest.mark.parametrize("name", ["so101_lift", "koch_lift"])
def test_shipped_bundle_says_how_it_was_made(name: str) -> None:
    made = json.loads((BUNDLES / name / "bundle.json").read_text())["provenance"]
    assert made["samples"][0]["command"].startswith("robotd-policies demos")
    assert made["training"]["commands"][0]["command"].startswith("robotd-policies train")
    assert made["export"]["command"].startswith("robotd-policies export")
    assert made["training"]["seed"] == 0
    for source in made["samples"]:
        assert max(source["seeds"]) <= collect.VALIDATION_SEEDS
