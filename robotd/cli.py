"""The command line. Each command is thin: check the input, call the part that does the work.

Errors that robotd raises on purpose end as one line on stderr and exit code 2.
"""

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from robotd import __version__
from robotd.bench.commands import bench_app
from robotd.config import default_runtime_dir, load
from robotd.errors import ConfigError, IpcError, RobotdError
from robotd.ipc.inbox import CommandName, InboxClient
from robotd.ipc.ring import Mode, TickReport
from robotd.ipc.say import DATE_FORMAT, log_format
from robotd.policy.commands import policy_app

USAGE_ERROR = 2

app = typer.Typer(
    help="Real-time control of low-cost robot arms (Koch v1.1, SO-101).",
    epilog="Without hardware, begin with: [bold]robotd demo[/]",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
sim_app = typer.Typer(help="Simulated arms.", no_args_is_help=True)
app.add_typer(policy_app, name="policy")
app.add_typer(sim_app, name="sim")
app.add_typer(bench_app, name="bench")

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", help="TOML file.", envvar="ROBOTD_CONFIG")
]
RuntimeOption = Annotated[
    Path | None,
    typer.Option("--runtime-dir", help="Runtime directory of the daemon.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DEFAULT_CONFIG = Path("/etc/robotd/robotd.toml")


def main() -> None:
    """Entry point: run a command; an intended error is one line and exit code 2."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app(standalone_mode=True)
    except RobotdError as error:
        for line in str(error).splitlines():
            print(f"robotd: {line}", file=sys.stderr)
        sys.exit(USAGE_ERROR)
    except ModuleNotFoundError as error:
        if error.name != "mujoco":
            raise
        print("robotd: the simulator is not installed: pip install 'robotd[sim]'", file=sys.stderr)
        sys.exit(USAGE_ERROR)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _terminate(number: int, frame: FrameType | None) -> None:
    """SIGTERM, where a command does not mind it itself: end as by Ctrl-C, tidily."""
    sys.exit(128 + number)


def _version(shown: bool) -> None:
    if shown:
        print(f"robotd {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def _runtime(given: Path | None) -> Path:
    return given if given is not None else default_runtime_dir()


def _print_json(data: object) -> None:
    print(json.dumps(data, indent=1))


@app.command()
def run(
    config: ConfigOption = DEFAULT_CONFIG,
    check: Annotated[bool, typer.Option("--check", help="Check the file and stop.")] = False,
) -> None:
    """Run the daemon in the foreground, until Ctrl-C or SIGTERM.

    The arm stays limp until `robotd arm`.

    Example: [bold]robotd run -c docs/examples/so101.toml[/]
    """
    from robotd.daemon import Daemon, block_signals
    from robotd.preflight import check as check_everything

    block_signals()
    if config == DEFAULT_CONFIG and not config.exists():
        raise ConfigError(f"{config}: not there; give --config FILE (examples: docs/examples)")
    settings = load(config)
    check_everything(settings, config)
    if check:
        print(f"{config}: good")
        return
    logging.basicConfig(level=logging.INFO, format=log_format("robotd"), datefmt=DATE_FORMAT)
    raise typer.Exit(Daemon(settings).run())


@app.command()
def status(
    runtime_dir: RuntimeOption = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Refresh until Ctrl-C.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show mode, joints, timing, cameras, policy and processes."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from robotd.status import gather, render

    folder = _runtime(runtime_dir)
    if as_json:
        _print_json(gather(folder))
        return
    if not watch:
        Console().print(render(gather(folder)))
        return
    with Live(render(gather(folder)), auto_refresh=False, screen=True) as live:
        while True:
            time.sleep(0.125)
            try:
                page = render(gather(folder))
            except IpcError as error:  # between two runs of the daemon
                page = Text(str(error), style="red")
            live.update(page, refresh=True)


def _call(name: CommandName, runtime_dir: Path | None, timeout_s: float = 10.0) -> TickReport:
    """Give a command to the loop; IpcError when it is refused or not answered."""
    client = InboxClient(_runtime(runtime_dir))
    try:
        return client.call(name, timeout_s=timeout_s)
    finally:
        client.close()


@app.command()
def arm(runtime_dir: RuntimeOption = None) -> None:
    """Switch torque on where the arm is, and hold."""
    _call("arm", runtime_dir)
    print("armed: torque is on, the arm holds where it is")


@app.command()
def disarm(runtime_dir: RuntimeOption = None) -> None:
    """Stop, then switch torque off. The arm goes limp: support it."""
    _call("disarm", runtime_dir)
    print("disarmed: torque is off")


@app.command()
def hold(runtime_dir: RuntimeOption = None) -> None:
    """Stop and hold here, torque on."""
    _call("hold", runtime_dir)
    print("holding: torque stays on")


@app.command()
def park(
    runtime_dir: RuntimeOption = None,
    wait: Annotated[bool, typer.Option(help="Return when the arm has arrived.")] = True,
) -> None:
    """Move slowly to the park pose, and hold there."""
    from robotd.episodes import await_mode

    report = _call("park", runtime_dir)
    if wait and report.mode is Mode.PARK:
        report = await_mode(_runtime(runtime_dir), Mode.PARK)
    print(f"{report.message}: mode {report.mode.name}")
    if report.mode is Mode.FAULT:
        raise typer.Exit(USAGE_ERROR)


@app.command()
def estop(runtime_dir: RuntimeOption = None) -> None:
    """Torque off at once, from any mode: the arm falls. Stays so until `robotd clear`."""
    report = _call("estop", runtime_dir, 2.0)
    print(f"{report.message}; `robotd clear` ends it")


@app.command()
def clear(runtime_dir: RuntimeOption = None) -> None:
    """Clear a fault whose cause is gone. The arm is disarmed afterwards.

    Torque goes off, and Dynamixel servos that had shut down are restarted.
    """
    report = _call("clear", runtime_dir)
    print(report.message)


@policy_app.callback(invoke_without_command=True)
def policy(
    context: typer.Context,
    runtime_dir: RuntimeOption = None,
    wait_s: Annotated[float, typer.Option("--wait", help="Seconds to wait for the worker.")] = 10.0,
) -> None:
    """Let the policy move the arm: waits until its worker is ready, then starts it."""
    if context.invoked_subcommand is not None:
        return
    from robotd.episodes import OBSERVER_NAME, start_policy
    from robotd.ipc.status import read_status

    folder = _runtime(runtime_dir)
    start_policy(folder, wait_s)
    name = read_status(folder / OBSERVER_NAME).get("bundle")
    print(f"policy {name} moves the arm; `robotd hold` stops it")


ArmOption = Annotated[str, typer.Option("--arm", help="so101 or koch.")]


def _arm_model(name: str) -> str:
    if name not in ("so101", "koch"):
        raise ConfigError(f"--arm {name}: no such arm; allowed: so101, koch")
    return name


@sim_app.command("bus")
def sim_bus(
    arm: ArmOption = "so101",
    role: Annotated[str, typer.Option(help="follower or leader.")] = "follower",
    link: Annotated[Path | None, typer.Option(help="A stable name for the port.")] = None,
    baud_time: Annotated[
        bool, typer.Option("--baud-time", help="Bytes take as long as on the wire.")
    ] = False,
    faults: Annotated[str, typer.Option(help="Faults, e.g. drop:p=0.01,mute:id=3:at=2s.")] = "",
    physics: Annotated[str, typer.Option(help="mujoco, or ideal joints without it.")] = "mujoco",
    factory: Annotated[
        bool, typer.Option("--factory", help="Servos as delivered: all with id 1.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the faults.")] = 0,
) -> None:
    """Serve a simulated arm on a pseudo-terminal for any client; prints its path.

    Example: [bold]robotd sim bus --arm koch --link /tmp/koch --faults drop:p=0.01[/]
    """
    from robotd.sim.bus_command import serve_bus_command

    if physics not in ("mujoco", "ideal"):
        raise ConfigError(f"--physics {physics}: allowed: mujoco, ideal")
    if role not in ("follower", "leader"):
        raise ConfigError(f"--role {role}: allowed: follower, leader")
    serve_bus_command(
        _arm_model(arm),
        role,
        link,
        baud_time=baud_time,
        faults=faults,
        physics="ideal" if physics == "ideal" else "mujoco",
        factory=factory,
        seed=seed,
    )


@sim_app.command("film")
def sim_film(
    out: Annotated[Path, typer.Argument(help="FILE.png to write.", show_default=False)],
    arm: ArmOption = "so101",
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle folder; default: the shipped one.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the scene.")] = 1_000_000,
) -> None:
    """Run one episode on the virtual clock and save six of its moments as one picture.

    Example: [bold]robotd sim film lift.png --arm koch --seed 7[/]
    """
    from robotd.evaluate import shipped_bundle
    from robotd.film import film

    model = _arm_model(arm)
    result = film(model, bundle or shipped_bundle(model), seed, out)
    print(f"{out}: {'lifted' if result.success else result.note} after {result.seconds:.1f} s")


@app.command()
def demo(
    arm: ArmOption = "so101",
    episodes: Annotated[int, typer.Option("--episodes", "-n", min=1, help="How many.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first scene.")] = 2_000_000,
    view: Annotated[
        str | None, typer.Option(help="FILE.png to keep up to date, or `window`.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """A policy lifts a cube with a simulated arm, from camera pictures; ends by itself.

    Everything but the servos and the table is real.

    Example: [bold]robotd demo --arm koch -n 3[/]
    """
    from rich.console import Console

    from robotd.demo import demo as run_demo
    from robotd.demo import summary_table

    console = Console(stderr=as_json)
    model = _arm_model(arm)
    console.print(f"robotd demo: a simulated {model} lifts a cube")
    summary = run_demo(model, episodes, seed, view, console)
    if as_json:
        _print_json(summary)
    else:
        console.print(summary_table(summary))
        if view not in (None, "window"):
            console.print(f"pictures of the last episode: {view}")
    raise typer.Exit(0 if summary["successes"] else 1)


@app.command("eval")
def evaluate(
    arm: ArmOption = "so101",
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle folder; default: the shipped one.")
    ] = None,
    episodes: Annotated[int, typer.Option("--episodes", "-n", min=1, help="How many.")] = 50,
    seed_start: Annotated[int, typer.Option(min=0, help="First seed.")] = 1_000_000,
    baseline: Annotated[
        str | None, typer.Option(help="expert, blind or blank-images in the policy's place.")
    ] = None,
    stepped: Annotated[
        bool, typer.Option("--stepped", help="Virtual clock, one process, faster than real time.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Success rate over seeded episodes, with its 95 % interval.

    Through the real daemon unless --stepped.

    Example: [bold]robotd eval --arm koch -n 200[/]
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    from robotd.evaluate import BASELINES, shipped_bundle
    from robotd.evaluate import evaluate as run_episodes

    chosen = next((name for name in BASELINES if name == baseline), None)
    if baseline is not None and chosen is None:
        raise ConfigError(f"--baseline {baseline}: allowed: {', '.join(BASELINES)}")
    model = _arm_model(arm)
    folder = bundle or shipped_bundle(model)
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        row = progress.add_task(f"{model} {baseline or folder.name}", total=episodes)
        report = run_episodes(
            model, folder, episodes, seed_start, chosen, stepped, lambda _: progress.advance(row)
        )
    if as_json:
        _print_json(report.full())
        return
    figures = report.summary()
    low, high = figures["interval95"]
    print(
        f"{model} {figures['subject']} ({figures['clock']} clock): "
        f"{figures['successes']} of {figures['episodes']} = {figures['rate']:.1%}, "
        f"95 % interval {low:.1%} to {high:.1%}"
        + (f"; median {figures['seconds_to_success_median']} s" if figures["successes"] else "")
    )
    for note, count in figures["failures"].items():
        print(f"  {count} x {note}")


if __name__ == "__main__":
    main()
