"""The command line as a user meets it: one clear line and exit code 2 for what cannot work."""

import contextlib
import io
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from robotd.cli import main
from tests.bundles import make_bundle

ROOT = Path(__file__).parents[1]
MINIMAL = """
[[arms]]
id = "follower"
model = "so101"
port = "{port}"
calibration = "{calibration}"
"""


def robotd(*args: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "robotd", *args],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        stdin=subprocess.DEVNULL,
    )


def inside(*args: str) -> subprocess.CompletedProcess[str]:
    """The same without a process of its own: for commands that start nothing."""
    out, err = io.StringIO(), io.StringIO()
    before, words = signal.getsignal(signal.SIGTERM), sys.argv
    sys.argv = ["robotd", *args]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        signal.signal(signal.SIGTERM, before)
        sys.argv = words
    return subprocess.CompletedProcess(args, code, out.getvalue(), err.getvalue())


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


def run_config(folder: Path, more: str = "", **given: str) -> subprocess.CompletedProcess[str]:
    """`robotd run` on a minimal configuration and some more lines."""
    path = config_file(folder, **given)
    path.write_text(path.read_text() + more)
    return robotd("run", "-c", str(path))


# Configuration


def test_absent_configuration_file(tmp_path: Path) -> None:
    refused(robotd("run", "-c", str(tmp_path / "none.toml")), "none.toml", "No such file")


def test_no_configuration_file_given() -> None:
    if Path("/etc/robotd/robotd.toml").exists():
        pytest.skip("this machine has a configuration of its own")
    refused(robotd("run"), "/etc/robotd/robotd.toml", "--config", "docs/examples")


def test_file_that_is_no_toml(tmp_path: Path) -> None:
    refused(run_config(tmp_path, "x = ["), "robotd.toml", "TOML")


def test_wrong_key_is_named(tmp_path: Path) -> None:
    refused(run_config(tmp_path, "speed = 3\n"), "arms.0.speed", "no such key")


def test_every_problem_has_a_line_of_its_own(tmp_path: Path) -> None:
    run = run_config(tmp_path, '[control]\nrate_hz = 9\n[stop]\naction = "drop"\n')
    assert run.returncode == 2
    first, second = run.stderr.splitlines()
    assert "control.rate_hz = 9" in first
    assert "stop.action = 'drop'" in second
    assert "park" in second


def test_simulated_arm_without_simulator(tmp_path: Path) -> None:
    refused(run_config(tmp_path, port="sim"), "follower", "[sim]")


def test_missing_calibration_is_named(tmp_path: Path) -> None:
    run = run_config(tmp_path, calibration="absent.json")
    refused(run, "arms.follower.calibration", "absent.json", "no such file")


def test_damaged_calibration_is_named(tmp_path: Path) -> None:
    (tmp_path / "cal.json").write_text('{"shoulder_pan": {"id": 1}}')
    refused(run_config(tmp_path, calibration="cal.json"), "cal.json", "drive_mode is missing")


def test_limits_that_the_rate_cannot_hold(tmp_path: Path) -> None:
    refused(run_config(tmp_path, "[control]\nrate_hz = 20\n"), "robotd.toml", "rate_hz", "velocity")


# The bundle


def test_bundle_for_another_arm_is_refused(tmp_path: Path) -> None:
    bundle = ROOT / "policies" / "bundles" / "koch_lift"
    run = run_config(tmp_path, f'[policy]\nbundle = "{bundle}"\n')
    refused(run, "robotd.toml", "policy", "koch_lift", "koch", "so101")


def test_bundle_without_its_cameras_is_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    run = run_config(tmp_path, f'[policy]\nbundle = "{bundle}"\n')
    refused(run, "camera", "front", "wrist", "configured: none")


def test_bundle_with_a_damaged_file_is_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", cameras=())
    graph = bundle / "policy.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"x")
    run = run_config(tmp_path, f'[policy]\nbundle = "{bundle}"\n')
    refused(run, "policy.onnx", "hash")


def test_bundle_that_is_not_there(tmp_path: Path) -> None:
    run = run_config(tmp_path, '[policy]\nbundle = "nowhere"\n')
    refused(run, "nowhere", "bundle.json", "No such file")


# The runtime directory


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("/proc/robotd", ("/proc/robotd", "runtime_dir")),
        ("{folder}/robotd.toml", ("robotd.toml", "cannot use", "runtime_dir")),
        ("{folder}/" + 100 * "x", ("too long", "runtime_dir")),
    ],
)
def test_runtime_directory_that_cannot_be_used(
    tmp_path: Path, place: str, words: tuple[str, ...]
) -> None:
    path = config_file(tmp_path)
    place = place.format(folder=tmp_path)
    path.write_text(path.read_text().replace(f"{tmp_path}/r", place))
    refused(robotd("run", "-c", str(path)), *words)


def test_check_starts_nothing(tmp_path: Path) -> None:
    run = robotd("run", "--check", "-c", str(config_file(tmp_path)))
    assert run.returncode == 0
    assert "good" in run.stdout
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("name", ["so101", "koch", "so101_sim", "koch_sim"])
def test_the_examples_are_good(name: str) -> None:
    run = robotd("run", "--check", "-c", str(ROOT / "docs" / "examples" / f"{name}.toml"))
    assert run.returncode == 0, run.stderr


# Commands without a daemon


@pytest.mark.parametrize("name", ["arm", "disarm", "hold", "park", "policy", "estop", "clear"])
def test_command_without_a_daemon(tmp_path: Path, name: str) -> None:
    more = ("--wait", "0") if name == "policy" else ()
    refused(inside(name, *more, "--runtime-dir", str(tmp_path)), "robotd")


def test_status_without_a_daemon(tmp_path: Path) -> None:
    refused(inside("status", "--runtime-dir", str(tmp_path)), "is robotd running")


def test_eval_refuses_unknown_baseline_and_arm() -> None:
    refused(inside("eval", "--baseline", "luck"), "luck", "blank-images")
    refused(inside("eval", "--arm", "ur5"), "ur5", "so101, koch")


def test_demo_refuses_an_arm_and_a_picture_it_cannot_write(tmp_path: Path) -> None:
    refused(inside("demo", "--arm", "ur5"), "ur5", "so101, koch")
    refused(inside("demo", "--view", str(tmp_path / "none" / "x.png")), "none", "--view")
    refused(inside("demo", "--view", str(tmp_path / "picture.xyz")), "picture.xyz", ".png")


def test_sim_bus_refuses_what_is_not_there() -> None:
    refused(inside("sim", "bus", "--arm", "ur5"), "ur5", "so101, koch")
    refused(inside("sim", "bus", "--physics", "magic"), "magic", "ideal")
    refused(inside("sim", "bus", "--faults", "bang"), "bang", "unplug")
    refused(inside("sim", "bus", "--role", "driver"), "driver", "leader")


# Help


def commands(*path: str) -> list[tuple[str, ...]]:
    """Every command, as its words."""
    from typer.main import get_command

    from robotd.cli import app

    def walk(command: Any, words: tuple[str, ...]) -> list[tuple[str, ...]]:
        below = getattr(command, "commands", {})
        found = [words] if words else []
        for name, child in below.items():
            found += walk(child, (*words, name))
        return found

    return walk(get_command(app), path)


def test_every_command_explains_itself() -> None:
    names = commands()
    assert ("run",) in names
    assert ("policy", "serve") in names
    for words in names:
        shown = inside(*words, "--help")
        assert shown.returncode == 0, words
        before_options = shown.stdout.partition("\u2500 Options")[0]
        said = [line.strip() for line in before_options.splitlines() if line.strip()]
        assert said[0].startswith("Usage: "), words
        assert len(said[1]) > 10, words


def test_help_shows_examples() -> None:
    run = inside("run", "--help")
    assert run.returncode == 0
    assert "docs/examples/so101.toml" in run.stdout


def test_version_is_the_packages() -> None:
    import robotd as package

    assert inside("--version").stdout.strip() == f"robotd {package.__version__}"


def test_output_may_be_cut_off() -> None:
    """`robotd policy show | head -1` is no error."""
    bundle = str(ROOT / "policies" / "bundles" / "so101_lift")
    show = subprocess.Popen(
        [sys.executable, "-m", "robotd", "policy", "show", bundle, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert show.stdout is not None
    assert show.stderr is not None
    show.stdout.close()
    assert b"Traceback" not in show.stderr.read()
    show.wait(60)
    show.stderr.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_commands_say_nothing_ugly(tmp_path: Path, number: int) -> None:
    bus = subprocess.Popen(
        [sys.executable, "-m", "robotd", "sim", "bus", "--physics", "ideal"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert bus.stdout is not None
    assert bus.stdout.readline().startswith(b"/dev/")
    bus.send_signal(number)
    _, said = bus.communicate(timeout=60)
    assert said == b""


def test_policy_show_is_json_on_request() -> None:
    bundle = str(ROOT / "policies" / "bundles" / "koch_lift")
    assert json.loads(inside("policy", "show", bundle, "--json").stdout)["arm"] == "koch"
