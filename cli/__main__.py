"""Verbs of the `lockstep` command: up, down, plan, run, demo.

Progress goes to standard error, results to standard output.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer
from rich.console import Console

from cdk import REPOSITORY
from cli import plan as plans
from cli import results
from cli import study as study_runs
from cli.deployment import AWS_ERRORS, Deployment, NoDeployment
from cli.display import ProgressDisplay
from cli.exit_codes import ExitCode
from cli.study import Ended, Execution
from contract.errors import LockstepError, Refused, StudyRefused
from contract.forecast import Forecast
from contract.results import REPORT, SUMMARY_TEXT, study_prefix
from contract.study import Study, parse_study
from local.cloud import STATE, Cloud, Engine, owned, prune_runs, run_state, start_cloud, supervisor_log
from local.deploy import hash_of_sources

app = typer.Typer(
    help="Parameter-server experiments: sync or async, how many workers, how fast, how accurate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
progress = Console(stderr=True)

UP = STATE / "up"
"""Where the cloud that `up` starts has its files."""

DEMO = REPOSITORY / "examples" / "demo.json"

StudyFile = Annotated[
    Path | None, typer.Argument(help="The study, a JSON document; without one, the quick start: {}")
]
Local = Annotated[bool, typer.Option("--local", help="Run on the embedded cloud of this machine.")]
LocalPlan = Annotated[
    bool, typer.Option("--local", help="Plan for the embedded cloud of this machine; it need not be up.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")]
Output = Annotated[Path, typer.Option(help="Folder that results are fetched to.")]
EngineChoice = Annotated[
    Engine | None,
    typer.Option(
        help="What runs the tasks: processes, or the Docker engine of this machine.",
        show_default="process, or that of the cloud that is up",
    ),
]
Profile = Annotated[str | None, typer.Option(help="AWS profile.")]
Region = Annotated[str | None, typer.Option(help="AWS region.")]
StackName = Annotated[str, typer.Option(help="Name of the deployed stack.")]


P = ParamSpec("P")


def verb(function: Callable[P, None]) -> Callable[P, None]:
    """Make a function a verb of the command: its errors become one message and an exit status."""

    @wraps(function)
    def translated(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except KeyboardInterrupt:
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except LockstepError as error:
            _say(str(error))
            raise typer.Exit(ExitCode.REFUSED if isinstance(error, Refused) else ExitCode.FAILED) from error
        except AWS_ERRORS as error:
            _say(_one_line(error))
            raise typer.Exit(ExitCode.FAILED) from error

    return app.command()(translated)


@verb
def up(engine: EngineChoice = None) -> None:
    """Start the embedded cloud, deploy the stack, and say how to use it."""
    cloud = start_cloud(UP, engine=engine or "process", tied=False, progress=_say)
    machine = cloud.outputs["StateMachineArn"]
    typer.echo(f"endpoint       {cloud.endpoint}")
    typer.echo(f"state machine  {machine}")
    typer.echo(f"results        s3://{cloud.outputs['BucketName']}/studies/")
    typer.echo(f"log            {supervisor_log(UP)}")
    typer.echo("\nStart a study with the AWS CLI:\n")
    typer.echo("  export AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test AWS_DEFAULT_REGION=us-east-1")
    typer.echo(f"  aws --endpoint-url {cloud.endpoint} stepfunctions start-execution \\")
    typer.echo(f"    --state-machine-arn {machine} --input '{{}}'")
    typer.echo("\nor with:  ./lockstep run --local\nStop with: ./lockstep down")


@verb
def down() -> None:
    """Stop the embedded cloud that `up` started, and everything in it."""
    cloud = Cloud.load(UP)
    if cloud is None:
        with owned(UP):  # raises where one is starting
            _say("no embedded cloud is up")
        return
    cloud.stop()
    _say("the embedded cloud is down")


@verb
def plan(  # noqa: PLR0917 - typer reads options from the signature
    study: StudyFile = None,
    local: LocalPlan = False,
    as_json: AsJson = False,
    profile: Profile = None,
    region: Region = None,
    stack_name: StackName = "Lockstep",
) -> None:
    """Show what a study would take, and start nothing: experiments, durations, cost and quota."""
    document, parsed = _read(study)
    expected = _planned(document, parsed, local, lambda: Deployment.on_aws(stack_name, profile, region))
    _show_plan(expected, as_json=as_json)


@verb
def run(  # noqa: PLR0917 - typer reads options from the signature
    study: StudyFile = None,
    local: Local = False,
    output: Output = Path("results"),
    engine: EngineChoice = None,
    profile: Profile = None,
    region: Region = None,
    stack_name: StackName = "Lockstep",
) -> None:
    """Run a study and fetch its report."""
    document, parsed = _read(study)
    results.prepare(output)
    if local:
        with _embedded(engine) as cloud:
            _run(Deployment.embedded(cloud), document, parsed, output)
    else:
        _run(Deployment.on_aws(stack_name, profile, region), document, parsed, output)


@verb
def demo(output: Output = Path("results"), engine: EngineChoice = None) -> None:
    """Sync against async with 1, 2 and 4 workers, on the embedded cloud of this machine."""
    run(study=DEMO, local=True, output=output, engine=engine)


def _planned(
    document: dict[str, Any], study: Study, local: bool, on_aws: Callable[[], Deployment]
) -> Forecast:
    """By the deployment where there is one; otherwise by what the document says alone."""
    try:
        if not local:
            return plans.plan_there(on_aws(), document)
        if cloud := Cloud.load(UP):
            return plans.plan_there(Deployment.embedded(cloud), document)
        why = "no embedded cloud is up (./lockstep up)"
    except NoDeployment as absent:
        why = _one_line(absent)
    return plans.plan_here(study, embedded=local, notes=[f"without quota and history: {why}"])


def _show_plan(expected: Forecast, *, as_json: bool = False) -> None:
    """On standard output. A study that would be refused ends the command so."""
    if as_json:
        typer.echo(expected.model_dump_json(indent=2))
    else:
        # What goes to a file or a pipe has no width of its own.
        plans.show(expected, Console() if sys.stdout.isatty() else Console(width=120))
    if expected.problems:
        raise typer.Exit(ExitCode.REFUSED)


def _read(file: Path | None) -> tuple[dict[str, Any], Study]:
    """The study document of a file. Raises StudyRefused."""
    if file is None:
        return {}, Study()
    try:
        document = json.loads(file.read_text())
    except OSError as error:
        raise StudyRefused([f"{file}: {error.strerror}"]) from error
    except ValueError as error:
        raise StudyRefused([f"{file}: not JSON: {error}"]) from error
    return document, parse_study(document)


@contextmanager
def _embedded(engine: Engine | None) -> Iterator[Cloud]:
    """The cloud that is up, or one for this run alone. Raises OtherCloudUp where the first does not fit."""
    prune_runs()
    if cloud := Cloud.load(UP):
        cloud.require(engine, hash_of_sources())
        yield cloud
        return
    own = start_cloud(run_state(os.getpid()), engine=engine or "process", tied=True, progress=_say)
    try:
        yield own
    finally:
        own.stop()


def _run(deployment: Deployment, document: dict[str, Any], study: Study, output: Path) -> None:
    execution = study_runs.start(deployment, document, study)
    try:
        _say(f"study {execution.study_id} on the {deployment.hint}")
        ended = _watch(deployment, execution)
    except (KeyboardInterrupt, SystemExit):
        _stop(deployment, execution)
        raise
    except Exception:
        _say(study_runs.left_running(deployment, execution))
        raise
    if ended.error == "StudyRefused":
        _say(ended.cause)
        raise typer.Exit(ExitCode.REFUSED)
    if study.dry_run and ended.status == "SUCCEEDED":
        _show_plan(Forecast.model_validate_json(ended.output))
        return
    folder = _fetch(deployment, execution, ended, output)
    if folder:
        typer.echo((folder / SUMMARY_TEXT).read_text())
        typer.echo(f"report: {folder / REPORT}")
    if ended.status != "SUCCEEDED":
        progress.print(f"the study {ended.status.lower()}: {ended.cause}", markup=False, soft_wrap=True)
        raise typer.Exit(ExitCode.STUDY_FAILED)


def _fetch(deployment: Deployment, execution: Execution, ended: Ended, output: Path) -> Path | None:
    """The folder with the results, or None where there are none. Raises NotFetched."""
    try:
        return results.fetch(deployment, execution.study_id, output)
    except (*AWS_ERRORS, OSError) as error:
        place = f"s3://{deployment.bucket_name}/{study_prefix(execution.study_id)}"
        raise results.NotFetched(
            f"the study {execution.arn} has {ended.status.lower()}, but its results were not fetched from"
            f" {place}: {_one_line(error)}"
        ) from error


def _watch(deployment: Deployment, execution: Execution) -> Ended:
    with ProgressDisplay(progress) as display:
        for seen in study_runs.watch(deployment, execution, interval_seconds=2):
            if isinstance(seen, Ended):
                return seen
            display.show(seen)
    raise AssertionError("a watched execution ends")


def _stop(deployment: Deployment, execution: Execution) -> None:
    """The first Ctrl-C stops the study, a second one stops waiting and says what may be left."""
    _say("stopping the study; once more stops waiting for its end")
    try:
        left = study_runs.stop(deployment, execution, _say)
    except KeyboardInterrupt:
        left = -1
    except AWS_ERRORS as error:
        _say(f"it may not have been stopped: {_one_line(error)}")
        _say(study_runs.left_running(deployment, execution))
        return
    if left:
        _say(f"tasks of {execution.study_id} may still be running on the {deployment.hint}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _say(text: str) -> None:
    progress.print(text, markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    """Run the command; ends the process with its exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(ExitCode.TERMINATED))
    app(prog_name="lockstep")


if __name__ == "__main__":
    main()
