"""The command line as a user meets it: one clear line and exit code 2 for what cannot work."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MINIMAL = """
[[arms]]
id = "follower"
model = "so101"
port = "{port}"
calibration = "{calibration}"
"""


def robotd(*args: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "robotd.cli", *args],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        stdin=subprocess.DEVNULL,
    )


def refused(run: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2, no traceback, one line that has all the words."""
    assert run.returncode == 2, run.stderr
    assert "Traceback" not in run.stderr
    lines = [line for line in run.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, run.stderr
    for word in words:
        assert word in lines[0]


def config_file(folder: Path, port: str = "/dev/robotd-absent", calibration: str = "") -> Path:
    given = calibration or str(ROOT / "calibration" / "so101_sim.json")
    path = folder / "robotd.toml"
    path.write_text(f'runtime_dir = "{folder}/r"\n' + MINIMAL.format(port=port, calibration=given))
    return path


def test_absent_configuration_file(tmp_path: Path) -> None:
    refused(robotd("run", "-c", str(tmp_path / "none.toml")), "none.toml", "No such file")


def test_wrong_key_is_named(tmp_path: Path) -> None:
    path = config_file(tmp_path)
    path.write_text(path.read_text() + "speed = 3\n")
    refused(robotd("run", "-c", str(path)), "arms.0.speed", "no such key")


def test_missing_calibration_is_named(tmp_path: Path) -> None:
    path = config_file(tmp_path, calibration="absent.json")
    refused(robotd("run", "-c", str(path)), "absent.json", "no such file")


def test_bundle_for_another_arm_is_refused(tmp_path: Path) -> None:
    path = config_file(tmp_path)
    bundle = ROOT / "policies" / "bundles" / "koch_lift"
    path.write_text(path.read_text() + f'[policy]\nbundle = "{bundle}"\n')
    refused(robotd("run", "-c", str(path)), "koch_lift", "koch", "so101")


def test_bundle_without_its_cameras_is_refused(tmp_path: Path) -> None:
    path = config_file(tmp_path)
    bundle = ROOT / "policies" / "bundles" / "so101_lift"
    path.write_text(path.read_text() + f'[policy]\nbundle = "{bundle}"\n')
    refused(robotd("run", "-c", str(path)), "cameras", "front", "wrist")


def test_check_starts_nothing(tmp_path: Path) -> None:
    run = robotd("run", "--check", "-c", str(config_file(tmp_path)))
    assert run.returncode == 0
    assert "good" in run.stdout
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("name", ["arm", "disarm", "hold", "park", "estop", "clear"])
def test_command_without_a_daemon(tmp_path: Path, name: str) -> None:
    refused(robotd(name, "--runtime-dir", str(tmp_path)), "robotd")


def test_status_without_a_daemon(tmp_path: Path) -> None:
    refused(robotd("status", "--runtime-dir", str(tmp_path)), "is robotd running")


def test_eval_refuses_unknown_baseline_and_arm() -> None:
    refused(robotd("eval", "--baseline", "luck"), "luck", "blank-images")
    refused(robotd("eval", "--arm", "ur5"), "ur5", "so101, koch")


def test_help_shows_examples() -> None:
    run = robotd("run", "--help")
    assert run.returncode == 0
    assert "docs/examples/so101.toml" in run.stdout


def test_version_is_the_packages() -> None:
    import robotd as package

    assert robotd("--version").stdout.strip() == f"robotd {package.__version__}"
