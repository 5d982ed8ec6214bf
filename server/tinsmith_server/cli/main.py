"""`tinsmith`: every command, its help, and the one line that is printed when something is wrong."""

import subprocess
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer
from redis.exceptions import RedisError
from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError
from tinsmith.protocol.errors import TinsmithError

from tinsmith_server.cli import checkpoints, evaluation, keys, members, models, up
from tinsmith_server.cli.status import status
from tinsmith_server.exposure import check_exposure
from tinsmith_server.problems import Problem, describe_os_error
from tinsmith_server.settings import Settings, SettingsError

app = typer.Typer(
    name="tinsmith",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="A training service on your own GPUs that speaks Tinker's API.\n\n"
    "Begin with [bold]tinsmith up[/bold]: it starts everything and prints two lines to paste.",
)
app.add_typer(keys.app, name="keys")
app.add_typer(members.app, name="members")
app.add_typer(models.app, name="models")
app.add_typer(checkpoints.app, name="checkpoints")
app.command("up")(up.up)
app.command("demo")(up.demo)
app.command("eval")(evaluation.evaluate)
app.command("status")(status)


def main() -> None:
    """Anything foreseen ends in one line and a non-zero exit code."""
    try:
        app()
    except (Problem, SettingsError, TinsmithError) as error:
        _stop(str(error))
    except RedisError as error:
        _stop(f"Redis cannot be reached at TINSMITH_REDIS_URL ({type(error).__name__}).")
    except SQLAlchemyError as error:
        _stop(f"The database cannot be used: {str(error).splitlines()[0][:200]}")
    except OSError as error:
        _stop(describe_os_error(error))


def _stop(sentence: str) -> None:
    Console(stderr=True).print(f"[red]tinsmith:[/red] {sentence}", highlight=False, soft_wrap=True)
    raise SystemExit(1)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    setup_link: Annotated[
        bool, typer.Option(help="Print the link to set up the console, while nobody has used it.")
    ] = True,
) -> None:
    """Run one API process (TINSMITH_REDIS_URL, TINSMITH_DATABASE_URL, TINSMITH_STORE_URL)."""
    from tinsmith_server.api_process import run_api

    settings = Settings.from_environment()
    settings = replace(settings, host=host or settings.host, port=port or settings.port)
    check_exposure(settings)
    link = members.setup_link(settings, members.console_url(settings)) if setup_link else None
    if link:
        typer.echo(f"Set up the console (the link works once): {link}", err=True)
    run_api(settings, settings.host, settings.port)


@app.command()
def work() -> None:
    """Run one worker on this machine's device (TINSMITH_MODELS, TINSMITH_REDIS_URL)."""
    raise SystemExit(subprocess.run([sys.executable, "-m", "tinsmith_worker"]).returncode)


@app.command()
def background() -> None:
    """Run the background worker: slow chores on the queue `tinsmith`, apart from training."""
    from tinsmith_server.background.process import run_background

    run_background(Settings.from_environment())


@app.command()
def migrate() -> None:
    """Bring the database to the newest schema. `serve` does this by itself."""
    from tinsmith_server.migrate import migrate as run

    run(Settings.from_environment())


@app.command("version")
def show_version() -> None:
    """Print the version."""
    try:
        typer.echo(version("tinsmith"))
    except PackageNotFoundError:
        typer.echo("0.1.0+source")
