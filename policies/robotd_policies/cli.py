"""The command line `robotd-policies`: demos, train, export, rollout."""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from robotd.errors import RobotdError

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two torch threads on a busy machine are slower

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="Demonstrations, training and ONNX export of robotd's policy bundles.",
)
console = Console(stderr=True)

ArmOption = Annotated[str, typer.Option(help="so101 or koch")]
TaskOption = Annotated[str, typer.Option(help="Task of the simulator.")]
SeedOption = Annotated[int, typer.Option(help="Everything random follows from it.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@contextmanager
def _bar(what: str, total: int) -> Iterator[Any]:
    """A progress bar on a terminal, a line now and then elsewhere."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    live = console.is_terminal
    state = {"done": 0, "spoke": time.monotonic()}
    with Progress(*columns, console=console, disable=not live) as progress:
        task = progress.add_task(what, total=total, note="")

        def advance(done: int, note: str, say: bool = False) -> None:
            progress.update(task, completed=done, note=note)
            if not live and (say or time.monotonic() - state["spoke"] > 15 or done == total):
                state["spoke"] = time.monotonic()
                print(f"{what} {done}/{total} {note}", file=sys.stderr, flush=True)

        yield advance


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Errors of the user's making as one line and exit code 2."""
    try:
        yield
    except (RobotdError, ValueError, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(2) from error


@app.command(epilog="Example: `robotd-policies demos --arm so101 --episodes 300 --out data/demos`")
def demos(
    arm: ArmOption,
    out: Annotated[Path, typer.Option(help="New folder for the samples.")],
    task: TaskOption = "lift",
    episodes: Annotated[int, typer.Option(min=1, help="Number of episodes.")] = 200,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Collect labelled samples from the scripted expert in bursts of noise."""
    from robotd_policies import collect
    from robotd_policies.world import World

    with _plain_errors():
        seeds = range(collect.DEMO_SEEDS, collect.DEMO_SEEDS + episodes)
        with World(arm, task) as world, _bar("demos", episodes) as advance:
            done: list[bool] = []

            def progress(outcome: Any) -> None:
                done.append(outcome.success)
                advance(len(done), f"success {sum(done)}/{len(done)}")

            result = collect.collect(
                world, collect.run_expert, out, seeds, collect.demonstration_plan(), seed, progress
            )
    if as_json:
        print(json.dumps(result.as_json()))
    else:
        print(f"{out}: {result.samples} samples, {result.successes}/{result.episodes} successes")


@app.command(
    epilog="Example: `robotd-policies train --arm so101 --demos data/demos --out data/run "
    "--steps 4000 --dagger-rounds 4`. To go on after a time limit: "
    "`robotd-policies train --resume --out data/run`"
)
def train(
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    arm: ArmOption = "so101",
    demos: Annotated[list[Path] | None, typer.Option(help="Folder of samples; repeatable.")] = None,
    task: TaskOption = "lift",
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of 64 samples.")] = 4000,
    batch: Annotated[int, typer.Option(min=1, help="Samples per step.")] = 64,
    dagger_rounds: Annotated[int, typer.Option(min=0, help="Rounds of relabelling.")] = 4,
    dagger_episodes: Annotated[int, typer.Option(min=1, help="Episodes per round.")] = 60,
    scheme: Annotated[str, typer.Option(help="dct_bins or uniform_bins")] = "dct_bins",
    seed: SeedOption = 0,
    minutes: Annotated[float | None, typer.Option(help="Wall-time limit; resume later.")] = None,
    validate: Annotated[int, typer.Option(min=0, help="Validation episodes at the end.")] = 50,
    from_run: Annotated[
        Path | None, typer.Option("--from", help="Start from that run's weights and samples.")
    ] = None,
    rate: Annotated[float, typer.Option(help="Learning rate after the warm-up.")] = 1e-3,
    dagger_help: Annotated[float, typer.Option(help="Expert's share in the first round.")] = 0.4,
    resume: Annotated[bool, typer.Option(help="Go on from the folder's checkpoint.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train on samples, with DAgger rounds; the checkpoint is written as it goes."""
    import torch

    from robotd_policies.provenance import provenance
    from robotd_policies.train import TrainConfig, Trainer
    from robotd_policies.world import World

    torch.set_num_threads(1)
    with _plain_errors():
        if resume:
            trainer = Trainer.resume(out)
            trainer.commands.append(provenance())
        else:
            config = TrainConfig(
                arm=arm,
                task=task,
                seed=seed,
                steps=steps,
                batch=batch,
                learning_rate=rate,
                scheme=scheme,
                dagger_rounds=dagger_rounds,
                dagger_episodes=dagger_episodes,
                dagger_help=dagger_help,
            )
            if from_run is not None:
                trainer = Trainer.continued(out, config, from_run)
            elif demos:
                trainer = Trainer(out, config, demos)
            else:
                raise ValueError("give at least one --demos folder, or --from, or --resume")
        with World(trainer.config.arm, trainer.config.task) as world:
            finished = _train(trainer, world, minutes)
            summary: dict[str, Any] = {"finished": finished, "step": trainer.step}
            summary |= trainer.held_out()
            if validate:
                summary |= _validate(trainer.policy().act, world, validate, seed)
    print(json.dumps(summary) if as_json else f"{out}: {summary}")


def _train(trainer: Any, world: Any, minutes: float | None) -> bool:
    from robotd_policies.train import LOG

    with _bar("train", trainer.config.steps) as advance, (trainer.folder / LOG).open("a") as log:

        def report(facts: dict[str, Any]) -> None:
            log.write(json.dumps(facts) + "\n")
            log.flush()
            if "loss" in facts:
                note = f"loss {facts['loss']:.3f}, tokens within 2 bins {facts['near']:.3f}"
                advance(facts["step"], note)
            else:
                note = (
                    f"DAgger round {facts['round']}: {facts['samples']} samples, "
                    f"success {facts['successes']}/{facts['episodes']}"
                )
                advance(facts["step"], note, say=True)

        return bool(trainer.run(world, report, minutes))


def _validate(act: Any, world: Any, episodes: int, seed: int, start: int | None = None) -> Any:
    """Success of a behaviour on validation scenes."""
    from robotd_policies import collect

    first = collect.VALIDATION_SEEDS if start is None else start
    wins: list[bool] = []
    failed: list[int] = []
    with _bar("rollouts", episodes) as advance:
        for outcome in collect.episodes(
            world, act, range(first, first + episodes), collect.validation_plan(), seed
        ):
            wins.append(outcome.success)
            if not outcome.success:
                failed.append(outcome.seed)
            advance(len(wins), f"success {sum(wins)}/{len(wins)}")
    return {
        "episodes": len(wins),
        "successes": sum(wins),
        "seed_start": first,
        "failed_seeds": failed,
    }


@app.command(
    epilog="Example: `robotd-policies export --run data/run --out policies/bundles/so101_lift`"
)
def export(
    run: Annotated[Path, typer.Option(help="Folder of the training run.")],
    out: Annotated[Path, typer.Option(help="Folder of the bundle.")],
    validate: Annotated[
        int, typer.Option(min=0, help="Roll the exported graphs out on so many validation scenes.")
    ] = 100,
    as_json: JsonOption = False,
) -> None:
    """Write the run as a policy bundle: ONNX graphs, manifest, card."""
    import torch

    from robotd_policies import export as exporting
    from robotd_policies.policy import BundlePolicy
    from robotd_policies.train import Trainer
    from robotd_policies.world import World

    torch.set_num_threads(1)
    with _plain_errors():
        trainer = Trainer.resume(run)
        exporting.export(trainer, out, {})
        if validate:
            with World(trainer.config.arm, trainer.config.task) as world:
                result = _validate(BundlePolicy(out).act, world, validate, 0)
            exporting.export(trainer, out, {"in-process rollouts (validation)": result})
        facts = {"bundle": str(out), "inference_ms": round(exporting.inference_ms(out), 2)}
    print(json.dumps(facts) if as_json else f"{out}: {facts['inference_ms']} ms per answer")


@app.command(
    epilog="Example: `robotd-policies rollout --bundle policies/bundles/so101_lift --episodes 50`"
)
def rollout(
    bundle: Annotated[Path | None, typer.Option(help="Bundle to run; none: the expert.")] = None,
    arm: ArmOption = "so101",
    task: TaskOption = "lift",
    episodes: Annotated[int, typer.Option(min=1)] = 50,
    seed_start: Annotated[int, typer.Option(help="First scene; validation scenes by default.")] = (
        500_000
    ),
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Quick evaluation in one process; for development (`robotd eval` runs the real stack)."""
    from robotd_policies import collect
    from robotd_policies.policy import BundlePolicy
    from robotd_policies.world import World

    with _plain_errors():
        if seed_start + episodes > collect.FINAL_SEEDS:
            raise ValueError(
                f"seeds from {collect.FINAL_SEEDS} on are for the final evaluation: `robotd eval`"
            )
        policy = BundlePolicy(bundle) if bundle is not None else None
        if policy is not None:
            arm = policy.manifest.arm
        behaviour = collect.run_expert if policy is None else policy.act
        with World(arm, task) as world:
            result = _validate(behaviour, world, episodes, seed, seed_start)
        if policy is not None:
            result["invalid_chunks"] = policy.invalid
    if as_json:
        print(json.dumps(result))
    else:
        print(
            f"{result['successes']}/{result['episodes']} episodes, failed: {result['failed_seeds']}"
        )


def main() -> None:
    """Entry point."""
    app()
