"""`robotd policy serve | check | show | keys`: what can be done with a bundle without an arm."""

import json
from pathlib import Path
from typing import Annotated

import typer

policy_app = typer.Typer(help="Run a policy on the arm; serve, check and show policy bundles.")

BundleArgument = Annotated[Path, typer.Argument(help="Folder of the bundle.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@policy_app.command()
def serve(
    bundle: BundleArgument,
    endpoint: Annotated[str, typer.Option(help="tcp://HOST:PORT or ipc://PATH.")],
    keys: Annotated[
        Path | None, typer.Option(help="CURVE keys; required beyond this machine.")
    ] = None,
) -> None:
    """Answer observations with action tokens until Ctrl-C; may run on another machine.

    Example: [bold]robotd policy serve policies/bundles/so101_lift --endpoint tcp://127.0.0.1:5555[/]
    """
    from robotd.policy.worker import serve as run_worker

    run_worker(bundle, endpoint, keys)


@policy_app.command()
def check(
    bundle: BundleArgument,
    arm: Annotated[str | None, typer.Option(help="Also: does it fit this arm model?")] = None,
    as_json: JsonOption = False,
) -> None:
    """Verify everything about a bundle before an arm follows it; exit code 2 when it is no good.

    Example: [bold]robotd policy check policies/bundles/so101_lift --arm so101[/]
    """
    from robotd.policy.check import check_bundle

    report = check_bundle(bundle, arm)
    if as_json:
        print(json.dumps(report.to_dict(), indent=1))
        return
    for line in report.checks:
        print(f"  good     {line}")
    for line in report.warnings:
        print(f"  warning  {line}")
    print(
        f"{report.name} for {report.arm}: inference p50 {report.act_ms_p50:.2f} ms, "
        f"p99 {report.act_ms_p99:.2f} ms; detokenizing p50 {report.decode_us_p50:.0f} us"
    )


@policy_app.command()
def show(bundle: BundleArgument, as_json: JsonOption = False) -> None:
    """Show a bundle's manifest: what it sees, what it answers, where it comes from.

    Example: [bold]robotd policy show policies/bundles/koch_lift[/]
    """
    from robotd.policy.bundle import Bundle

    loaded = Bundle.load(bundle)
    manifest = loaded.manifest
    if as_json:
        print(manifest.model_dump_json(indent=1))
        return
    images = ", ".join(f"{i.camera} {i.width}x{i.height}" for i in manifest.images)
    tokens = manifest.tokens
    rows = {
        "name": manifest.name,
        "arm": f"{manifest.arm}: {', '.join(manifest.joints)}",
        "sees": f"{images}; state: {' + '.join(manifest.state.parts)}",
        "answers": f"{tokens.count} {tokens.scheme} tokens of {tokens.vocabulary}",
        "chunk": f"{manifest.action_horizon} steps of {manifest.step_period_s * 1000:.1f} ms, "
        f"{manifest.execution_horizon} run before the next",
        "hash": loaded.digest,
        **{key: json.dumps(value) for key, value in manifest.results.items()},
    }
    for name, value in rows.items():
        print(f"{name:9} {value}")


@policy_app.command()
def keys(
    folder: Annotated[Path, typer.Argument(help="Where to write them.", show_default=False)],
) -> None:
    """Make CURVE keys for a policy worker on another machine.

    Example: [bold]robotd policy keys keys[/] and copy the folder to both machines.
    """
    from robotd.policy.endpoint import generate_keys

    for path in generate_keys(folder):
        print(path)
