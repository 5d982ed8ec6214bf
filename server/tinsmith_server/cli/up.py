"""`tinsmith up` and `tinsmith demo`: the whole service on this machine, and the main job on it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tinsmith_server.accounts.keys import KeyTerms
from tinsmith_server.cli import models
from tinsmith_server.cli.keys import create_key
from tinsmith_server.cli.members import setup_link
from tinsmith_server.embedded.stack import Stack, only_one
from tinsmith_server.problems import Problem, check_model_folder, check_port, check_space
from tinsmith_server.settings import default_data_dir

_console = Console(stderr=True)
Port = Annotated[int, typer.Option(envvar="TINSMITH_PORT", help="Port of the API.")]
Host = Annotated[str, typer.Option(envvar="TINSMITH_HOST", help="Address of the API.")]


def up(
    data_dir: models.DataDir = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    model: Annotated[
        list[str] | None,
        typer.Option(help="name=folder to serve; repeat for several. Default: `models list`."),
    ] = None,
) -> None:
    """Start everything on this machine: Valkey, API, worker, background. Ctrl-C stops it all.

    Without any model it first prepares SmolLM2-135M-Instruct, once.
    """
    folder = data_dir or default_data_dir()
    check_port(host, port)
    folder.mkdir(parents=True, exist_ok=True)
    check_space(folder)
    with only_one(folder):
        served = _models(folder, model or [])
        with Stack(folder, host, port, served) as stack:
            key = _first_key(stack)
            _greet(stack.url, key, served)
            _tell_console(stack)
            stack.watch()


def demo(
    out: Annotated[Path, typer.Option(help="Where the curves are drawn.")] = Path("demo.png"),
    data_dir: models.DataDir = None,
    port: Port = 8000,
    keep: Annotated[bool, typer.Option(help="Leave the service running afterwards.")] = False,
) -> None:
    """Fine-tune and distil a small model through the service, with figures before and after."""
    folder = data_dir or default_data_dir()
    check_port("127.0.0.1", port)
    folder.mkdir(parents=True, exist_ok=True)
    check_space(folder)
    with only_one(folder):
        served = _models(folder, [])
        with Stack(folder, "127.0.0.1", port, served) as stack:
            key = create_key(stack.settings, KeyTerms(name="demo"), "demo")
            environment = os.environ | {"TINKER_API_KEY": key, "TINKER_BASE_URL": stack.url}
            command = [sys.executable, "-m", "tinsmith.demo", "--base-url", stack.url]
            command += ["--api-key", key, "--out", str(out)]
            status = subprocess.run(command, env=environment).returncode
            if status:
                raise Problem(f"The demo ended with an error ({status}); logs: {folder / 'logs'}.")
            if keep:
                _greet(stack.url, key, served)
                stack.watch()


def _models(data_dir: Path, given: list[str]) -> dict[str, Path]:
    served = models.registered(data_dir)
    for pair in given:
        name, separator, folder = pair.partition("=")
        if not separator:
            raise Problem(f"--model {pair!r} is not name=folder.")
        served[name] = Path(folder)
    if not served:
        models.prepare_model(data_dir, models.DEFAULT_MODEL)
        served = models.registered(data_dir)
    for name, path in served.items():
        check_model_folder(name, path)
    return served


def _first_key(stack: Stack) -> str | None:
    """Made at the first start only; the marker says that there is one."""
    marker = stack.data_dir / "first_key_created"
    if marker.exists():
        return None
    key = create_key(stack.settings, KeyTerms(name="first"), "default")
    marker.touch()
    return key


def _tell_console(stack: Stack) -> None:
    link = setup_link(stack.settings, stack.url)
    if link:
        _console.print("\nSet up the console, by a link that works once:")
    _console.print(link or f"\nConsole: {stack.url}", highlight=False, soft_wrap=True)


def _greet(url: str, key: str | None, served: dict[str, Path]) -> None:
    _console.print(f"Tinsmith serves {', '.join(served)} at {url}. Ctrl-C stops it.\n")
    typer.echo(f"export TINKER_BASE_URL={url}")
    typer.echo(f"export TINKER_API_KEY={key or '<yours; tinsmith keys create NAME makes another>'}")
    _console.print("\nNow any script written for the [bold]tinker[/bold] SDK trains here.")
