"""Success rates: the interval, the staged configuration, and episodes on the virtual clock."""

import json
from pathlib import Path

import pytest

from robotd.episodes import EpisodeResult
from robotd.errors import BundleError, SimError
from robotd.evaluate import Evaluation, shipped_bundle, stage_config, wilson
from tests.bundles import make_bundle


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe 1998 (Statistics in Medicine 17), table I, method 3: score without correction.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_the_interval_is_wilsons(successes: int, trials: int, low: float, high: float) -> None:
    found = wilson(successes, trials)
    assert found == pytest.approx((low, high), abs=5e-5)


def test_nothing_is_known_without_trials() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_interval_shrinks_with_trials() -> None:
    widths = [high - low for low, high in (wilson(n // 2, n) for n in (10, 100, 1000))]
    assert widths == sorted(widths, reverse=True)


def evaluation(*results: EpisodeResult) -> Evaluation:
    return Evaluation("so101", "tiny", "stepped", 7, tuple(results), 1.0)


def test_the_summary_counts_and_says_why_not() -> None:
    report = evaluation(
        EpisodeResult(7, True, 2.0),
        EpisodeResult(8, False, 12.0, "time limit"),
        EpisodeResult(9, True, 4.0),
        EpisodeResult(10, False, 1.0, "time limit"),
    )
    figures = report.summary()
    assert (figures["episodes"], figures["successes"], figures["rate"]) == (4, 2, 0.5)
    assert figures["seconds_to_success_median"] == 3.0
    assert figures["failures"] == {"time limit": 2}
    full = json.loads(json.dumps(report.full(), allow_nan=False))
    assert [one["seed"] for one in full["results"]] == [7, 8, 9, 10]


def test_no_success_has_no_time() -> None:
    assert evaluation(EpisodeResult(1, False, 12.0)).summary()["seconds_to_success_median"] is None


def test_the_stage_has_the_bundles_cameras(tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    bundle = make_bundle(tmp_path / "b", cameras=(("front", 24, 16), ("wrist", 16, 16)))
    config = stage_config("so101", bundle, tmp_path, blank_images=True, faults="drop:p=0.01")
    assert [(c.name, c.driver, c.width, c.height) for c in config.cameras] == [
        ("front", "sim", 24, 16),
        ("wrist", "sim", 16, 16),
    ]
    assert config.policy is not None
    assert config.sim is not None
    assert config.sim.blank_images
    assert config.sim.faults == "drop:p=0.01"
    assert config.arms[0].park is not None


def test_a_bundle_for_the_other_arm_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    with pytest.raises(BundleError, match="made for koch, not so101"):
        stage_config("so101", make_bundle(tmp_path / "b", arm="koch"), tmp_path)


@pytest.mark.parametrize("model", ["so101", "koch"])
def test_a_bundle_is_shipped_for_each_arm(model: str) -> None:
    assert (shipped_bundle(model) / "bundle.json").is_file()


def test_an_arm_without_a_bundle_says_so() -> None:
    with pytest.raises(BundleError, match="--bundle"):
        shipped_bundle("ur5")


class TestStepped:
    """Episodes in one process, on a virtual clock."""

    mujoco = pytest.importorskip("mujoco")

    @pytest.mark.parametrize("model", ["so101", "koch"])
    def test_the_expert_lifts_the_cube(self, model: str) -> None:
        from robotd.evaluate import evaluate

        seen: list[EpisodeResult] = []
        report = evaluate(
            model, Path("unused"), 3, 5000, "expert", stepped=True, progress=seen.append
        )
        assert report.results == tuple(seen)
        assert [result.note for result in report.results] == ["", "", ""]
        assert report.summary()["clock"] == "stepped"
        assert report.summary()["subject"] == "expert"
        assert all(1.0 < result.seconds < 12.0 for result in report.results)

    def test_blind_and_blanked_baselines_run(self) -> None:
        from robotd.evaluate import evaluate

        bundle = shipped_bundle("so101")
        blind = evaluate("so101", bundle, 1, 5000, "blind", stepped=True)
        assert blind.summary()["subject"] == "blind"
        blanked = evaluate("so101", bundle, 1, 5000, "blank-images", stepped=True)
        assert blanked.summary()["subject"] == "blank-images"
        assert not blanked.results[0].success

    def test_a_seed_gives_the_same_episode_again(self, tmp_path: Path) -> None:
        first, second, other = (track(tmp_path, seed) for seed in (11, 11, 12))
        assert first == second
        assert first != other

    def test_a_fault_ends_the_episode_and_the_next_one_is_whole(self, tmp_path: Path) -> None:
        from robotd.stepped import SteppedStage

        bundle = make_bundle(tmp_path / "b", cameras=(("front", 24, 16),))
        stage = SteppedStage(stage_config("so101", bundle, tmp_path))
        ticks = 0

        def pull() -> None:
            nonlocal ticks
            ticks += 1
            if ticks == 20:
                stage.bus.inject("unplug:for=100ms", stage.clock.now_ns())

        with stage:
            result = stage.episode(1, 3.0, pull)
            assert not result.success
            assert result.note.startswith("fault PORT_LOST: ")
            assert stage.episode(2, 0.5).note == "time limit"

    def test_two_arms_are_too_many(self, tmp_path: Path) -> None:
        from robotd.stepped import SteppedStage

        config = stage_config("so101", None, tmp_path)
        twice = [config.arms[0], config.arms[0].model_copy(update={"id": "other"})]
        with pytest.raises(SimError, match="exactly one arm"):
            SteppedStage(config.model_copy(update={"arms": twice}))


def track(folder: Path, seed: int) -> list[tuple[float, ...]]:
    """Every applied target of an episode under a small policy that looks at pictures."""
    from robotd.stepped import SteppedStage

    bundle = make_bundle(folder / "b", cameras=(("front", 24, 16),))
    applied: list[tuple[float, ...]] = []
    stage = SteppedStage(stage_config("so101", bundle, folder))
    with stage:
        stage.episode(
            seed, 1.0, lambda: applied.append(tuple(j.applied for j in stage.loop.report.joints))
        )
    assert len(applied) > 100
    return applied
