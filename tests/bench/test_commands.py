"""`robotd bench` on the command line."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from robotd.bench import tick
from robotd.bench.commands import bench_app
from robotd.bench.report import Goal, Report
from robotd.errors import ConfigError, ProcessError

COMMANDS = ("tick", "loop", "latency", "startup", "all")
RUNNER = CliRunner()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_examples(command: str) -> None:
    page = RUNNER.invoke(bench_app, [command, "--help"], env={"COLUMNS": "200"}).output
    assert f"robotd bench {command}" in page
    assert "Examples:" in page
    assert "--json" in page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tick", "--port", "/dev/ttyACM9"], "--port needs --arm"),
        (["tick", "--write"], "belong to --port"),
        (["tick", "--calibration", "arm.json"], "belong to --port"),
        (["tick", "--arm", "ur5"], "allowed: koch, so101"),
        (["loop", "--arm", "ur5"], "allowed: koch, so101"),
        (["startup", "--json", "--markdown"], "exclude each other"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: list[str], words: str) -> None:
    result = RUNNER.invoke(bench_app, arguments)
    assert isinstance(result.exception, ConfigError)
    assert words in str(result.exception)


def a_report() -> Report:
    report = Report("tick", {"date": "2026-01-01T00:00:00", "kind": "x", "kernel": "6"}, {})
    report.machine |= {"python": "3.12", "realtime": "none", "load_1min": 0.0, "robotd": "0"}
    report.goals.append(Goal("a goal", 2.0, 1.0, "ms"))
    return report


@pytest.mark.parametrize(
    ("option", "words"), [("--json", '"met": false'), ("--markdown", "| a goal | <= 1 ms | 2 ms |")]
)
def test_a_report_is_printed_as_asked(
    monkeypatch: pytest.MonkeyPatch, option: str, words: str
) -> None:
    monkeypatch.setattr(tick, "bench_tick", lambda *_: a_report())
    result = RUNNER.invoke(bench_app, ["tick", option])
    assert result.exit_code == 0
    assert words in result.output
    if option == "--json":
        assert json.loads(result.output)["bench"] == "tick"


def test_all_shows_what_there_is_and_then_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from robotd.bench import latency, loop, startup

    def fails(*_: object, **__: object) -> Report:
        raise ProcessError("no simulator")

    monkeypatch.setattr(tick, "bench_tick", lambda *_: a_report())
    for module, name in ((loop, "bench_loop"), (latency, "bench_latency")):
        monkeypatch.setattr(module, name, fails)
    monkeypatch.setattr(startup, "bench_startup", lambda *_, **__: a_report())
    result = RUNNER.invoke(bench_app, ["all", "--markdown"])
    assert isinstance(result.exception, ProcessError)
    assert result.output.count("a goal") == 2


def test_sources_of_the_c_programs_come_with_the_package() -> None:
    folder = Path(tick.__file__).parent
    assert {path.name for path in folder.glob("*.c")} == {"responder.c", "wake.c"}
