"""`tinsmith models`: which folders are served under which names.

The list is `models.json` in the data directory. Preparing a model needs torch, so it runs in a
process of the worker's package and reports its progress as JSON lines.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tinsmith_server.problems import Problem, check_model_folder
from tinsmith_server.settings import default_data_dir

app = typer.Typer(no_args_is_help=True, help="List, add and prepare base models.")
DataDir = Annotated[
    Path | None,
    typer.Option(envvar="TINSMITH_DATA_DIR", help="Where everything is kept."),
]
DEFAULT_MODEL = "smollm2-135m"


def registered(data_dir: Path) -> dict[str, Path]:
    path = data_dir / "models.json"
    if not path.is_file():
        return {}
    return {name: Path(folder) for name, folder in json.loads(path.read_text()).items()}


def register(data_dir: Path, name: str, folder: Path) -> None:
    _write(data_dir, registered(data_dir) | {name: folder.resolve()})


def _write(data_dir: Path, models: dict[str, Path]) -> None:
    data_dir.mkdir(parents=True, exist_ok=True)
    text = json.dumps({name: str(folder) for name, folder in models.items()}, indent=1)
    (data_dir / "models.json").write_text(text)


@app.command("list")
def list_models(data_dir: DataDir = None) -> None:
    """Show the models that `tinsmith up` serves."""
    table = Table("name", "folder")
    for name, folder in registered(data_dir or default_data_dir()).items():
        table.add_row(name, str(folder))
    Console().print(table)


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="The name clients will use, such as org/model.")],
    folder: Annotated[Path, typer.Argument(help="config.json, *.safetensors, tokenizer.json.")],
    data_dir: DataDir = None,
) -> None:
    """Serve a model's folder under a name, from the next start on."""
    if "," in name or "=" in name:
        raise Problem("A model's name cannot hold ',' or '='.")
    check_model_folder(name, folder)
    register(data_dir or default_data_dir(), name, folder)
    typer.echo(f"{name} is registered; it is served from the next `tinsmith up` on.")


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="As `tinsmith models list` shows it.")],
    data_dir: DataDir = None,
) -> None:
    """Leave a model out from the next start on; its folder stays."""
    where = data_dir or default_data_dir()
    models = registered(where)
    if name not in models:
        raise Problem(f"No model is registered as {name!r}; `tinsmith models list` shows them.")
    _write(where, {other: folder for other, folder in models.items() if other != name})
    typer.echo(f"{name} is left out from the next `tinsmith up` on.")


@app.command()
def prepare(
    name: Annotated[str, typer.Argument(help="smollm2-135m or gemma3-270m.")] = DEFAULT_MODEL,
    accept_license: Annotated[
        bool, typer.Option("--accept-license", help="You have read the model's terms.")
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Turn a packaged model into a folder that can be served, once, and register it."""
    served = prepare_model(data_dir or default_data_dir(), name, accept_license)
    typer.echo(f"{served} is ready.")


def prepare_model(data_dir: Path, name: str, accept_license: bool = False) -> str:
    """The name it is served under."""
    command = [sys.executable, "-m", "tinsmith_worker.prepare", name]
    command += ["--models-dir", str(data_dir / "models")]
    command += ["--accept-license"] if accept_license else []
    errors = data_dir / "logs" / "prepare.log"
    errors.parent.mkdir(parents=True, exist_ok=True)
    last: dict[str, str] = {}
    with (
        errors.open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
        Progress(console=Console(stderr=True), transient=True) as progress,
    ):
        task = progress.add_task(f"Preparing {name}", total=1.0)
        assert process.stdout is not None
        for line in process.stdout:
            last = json.loads(line)
            if "progress" in last:
                progress.update(task, completed=float(last["progress"]), description=last["step"])
    if process.returncode or "folder" not in last:
        raise Problem(last.get("error") or f"{name} could not be prepared; see {errors}.")
    register(data_dir, last["served_name"], Path(last["folder"]))
    return last["served_name"]
