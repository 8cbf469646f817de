"""`robotd bench ...`: each command runs one bench and prints its report."""

import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from robotd.errors import ConfigError, RobotdError

if TYPE_CHECKING:
    from robotd.bench.report import Report

bench_app = typer.Typer(
    help="Measure this machine and this code, side by side with the peers.", no_args_is_help=True
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
MarkdownOption = Annotated[bool, typer.Option("--markdown", help="Print tables for a document.")]
ArmOption = Annotated[str | None, typer.Option("--arm", help="koch or so101.", show_default=False)]
TicksOption = Annotated[int, typer.Option("--ticks", "-n", min=1, help="Ticks of each client.")]
SecondsOption = Annotated[float, typer.Option("--seconds", "-s", min=0.2, max=500, help="Each.")]
StartsOption = Annotated[int, typer.Option("--starts", min=1, max=100, help="How many.")]
BundleOption = Annotated[
    Path | None, typer.Option("--bundle", help="Policy bundle; default: the shipped one.")
]
_TICKS, _SECONDS, _STARTS = 2000, 20.0, 5
_PAGE_WIDTH = 110  # of what is not printed on a terminal


def _arm(name: str | None, default: str = "so101") -> str:
    if name not in (None, "koch", "so101"):
        raise ConfigError(f"--arm {name}: no such arm; allowed: koch, so101")
    return name or default


def _ended(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends like Ctrl-C: everything that was started is ended first."""
    sys.exit(128 + number)


def _show(reports: Sequence["Report"], form: str) -> None:
    from rich.console import Console

    if form == "json":
        pages = [report.as_dict() for report in reports]
        print(json.dumps(pages[0] if len(pages) == 1 else {"benches": pages}, indent=1))
        return
    if form == "markdown":
        print("\n".join(report.markdown() for report in reports), end="")
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PAGE_WIDTH)
    for report in reports:
        console.print(report.render())
        console.print()


def _form(as_json: bool, as_markdown: bool) -> str:
    if as_json and as_markdown:
        raise ConfigError("--json and --markdown exclude each other")
    return "json" if as_json else "markdown" if as_markdown else "page"


def _run(form: str, *benches: Callable[[], "Report"]) -> None:
    """Run all, show what there is; the first intended error is raised after that."""
    signal.signal(signal.SIGTERM, _ended)
    reports, failure = [], None
    for bench in benches:
        try:
            reports.append(bench())
        except RobotdError as error:
            failure = failure or error
            if len(benches) > 1:
                print(f"robotd bench: {error}", file=sys.stderr)
    if reports:
        _show(reports, form)
    if failure is not None:
        raise failure


@bench_app.command()
def tick(
    ticks: TicksOption = _TICKS,
    arm: ArmOption = None,
    port: Annotated[
        str | None, typer.Option("--port", help="A bus that is there, real or simulated.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option("--calibration", help="With --port: LeRobot calibration file.")
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="With --port, Koch: write goals too (goal := present).")
    ] = False,
    baud: Annotated[int, typer.Option("--baud", help="With --port.")] = 1_000_000,
    as_json: JsonOption = False,
    as_markdown: MarkdownOption = False,
) -> None:
    """Time one tick (read six servos, write six) of robotd's bus and of its peers.

    Peers: LeRobot's bus, dynamixel_sdk, scservo_sdk, rustypot; those not installed are skipped.
    With --port it works on any bus and never moves an arm: it only reads. With --write (Koch alone,
    and only while its torque is off) it writes each servo's present position as its goal.

    Examples: [bold]robotd bench tick[/]   [bold]robotd bench tick --arm koch -n 500 --json[/]
    [bold]robotd bench tick --port /dev/ttyACM0 --arm so101[/]
    """
    from robotd.bench.tick import ARMS, bench_port, bench_tick

    form = _form(as_json, as_markdown)
    if port is None:
        if write or calibration is not None:
            raise ConfigError("--write and --calibration belong to --port")
        _run(form, lambda: bench_tick(ticks, ARMS if arm is None else (_arm(arm),)))
        return
    if arm is None:
        raise ConfigError("--port needs --arm koch or --arm so101")
    _run(form, lambda: bench_port(port, _arm(arm), calibration, ticks, write, baud))


@bench_app.command()
def loop(
    seconds: SecondsOption = _SECONDS,
    arm: ArmOption = None,
    bundle: BundleOption = None,
    rate: Annotated[
        list[int] | None, typer.Option("--rate", min=10, max=1000, help="Hz; may be repeated.")
    ] = None,
    as_json: JsonOption = False,
    as_markdown: MarkdownOption = False,
) -> None:
    """Time the real control loop at 200 and 500 Hz, beside a C thread that only wakes up.

    Starts the daemon on a simulated arm: policy worker, two cameras, wire time. With the cores as
    they are, and with every core kept busy.

    Examples: [bold]robotd bench loop[/]   [bold]robotd bench loop -s 60 --rate 500 --json[/]
    """
    from robotd.bench.loop import RATES, bench_loop

    form = _form(as_json, as_markdown)
    _run(form, lambda: bench_loop(seconds, _arm(arm), bundle, tuple(rate or RATES)))


@bench_app.command()
def latency(
    seconds: SecondsOption = _SECONDS,
    arm: ArmOption = None,
    bundle: BundleOption = None,
    as_json: JsonOption = False,
    as_markdown: MarkdownOption = False,
) -> None:
    """Time from an observation to the first applied action, less the model's own time.

    Examples: [bold]robotd bench latency[/]   [bold]robotd bench latency --arm koch -s 60 --json[/]
    """
    from robotd.bench.latency import bench_latency

    form = _form(as_json, as_markdown)
    _run(form, lambda: bench_latency(seconds, _arm(arm), bundle))


@bench_app.command()
def startup(
    starts: StartsOption = _STARTS,
    arm: ArmOption = None,
    bundle: BundleOption = None,
    as_json: JsonOption = False,
    as_markdown: MarkdownOption = False,
) -> None:
    """Time `robotd run` to its first tick, imports, and what memory each process keeps.

    Examples: [bold]robotd bench startup[/]   [bold]robotd bench startup --starts 20 --json[/]
    """
    from robotd.bench.startup import bench_startup

    form = _form(as_json, as_markdown)
    _run(form, lambda: bench_startup(starts, _arm(arm), bundle))


@bench_app.command("all")
def everything(
    ticks: TicksOption = _TICKS,
    seconds: SecondsOption = _SECONDS,
    starts: StartsOption = _STARTS,
    bundle: BundleOption = None,
    as_json: JsonOption = False,
    as_markdown: MarkdownOption = False,
) -> None:
    """Every bench, one after the other; about eight minutes as given.

    Examples: [bold]robotd bench all[/]   [bold]robotd bench all -n 200 -s 5 --json > bench.json[/]
    """
    from robotd.bench.latency import bench_latency
    from robotd.bench.loop import bench_loop
    from robotd.bench.startup import bench_startup
    from robotd.bench.tick import bench_tick

    _run(
        _form(as_json, as_markdown),
        lambda: bench_tick(ticks),
        lambda: bench_loop(seconds, bundle=bundle),
        lambda: bench_latency(seconds, bundle=bundle),
        lambda: bench_startup(starts, bundle=bundle),
    )
