"""`tinsmith checkpoints`: what is saved, and its ways out and in. Everything goes over HTTP."""

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from tinsmith.protocol.paths import TinkerPath

from tinsmith_server.cli.publishing import publish_folder, publish_to_hub, write_card
from tinsmith_server.cli.remote import ApiKey, BaseUrl, Remote, console
from tinsmith_server.problems import Problem

app = typer.Typer(
    no_args_is_help=True, help="List, fetch, merge, publish, import and delete checkpoints."
)
Path_ = Annotated[str, typer.Argument(metavar="PATH", help="tinker://<run>/<kind>/<name>.")]
Untie = Annotated[
    bool,
    typer.Option(
        "--untie-unembedding",
        help="Where the head is the embedding and was trained: write it as a tensor of its own.",
    ),
]
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


@app.command("list")
def list_checkpoints(
    run: Annotated[str | None, typer.Option(help="Of this training run only.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list.")] = False,
    base_url: BaseUrl = "",
    api_key: ApiKey = "",
) -> None:
    """Your checkpoints, the newest first."""
    remote = Remote(base_url, api_key)
    if run is None:
        rows = list(remote.pages("/checkpoints", "checkpoints"))
    else:
        rows = remote.call("GET", f"/training_runs/{_run(run)}/checkpoints")["checkpoints"]
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    table = Table("path", "type", "size", "saved", "public", "expires")
    for row in rows:
        size = f"{(row['size_bytes'] or 0) / 1e6:.1f} MB"
        public = "yes" if row["public"] else ""
        expires = (row["expires_at"] or "")[:16]
        table.add_row(
            row["tinker_path"], row["checkpoint_type"], size, row["time"][:16], public, expires
        )
    Console(soft_wrap=True).print(table)


@app.command()
def show(path: Path_, base_url: BaseUrl = "", api_key: ApiKey = "") -> None:
    """One checkpoint, as JSON: its row, and what its run trains."""
    remote, at = Remote(base_url, api_key), TinkerPath.parse(path)
    info = remote.call("POST", "/weights_info", json={"tinker_path": path})
    rows = remote.call("GET", f"/training_runs/{at.run_id}/checkpoints")["checkpoints"]
    [row] = [one for one in rows if one["tinker_path"] == path] or [{}]
    typer.echo(json.dumps(row | info, indent=1))


@app.command()
def download(
    path: Path_,
    out: Annotated[Path | None, typer.Option(help="Folder to make.")] = None,
    adapter_only: Annotated[
        bool, typer.Option("--adapter-only", help="Without the optimizer's state.")
    ] = False,
    base_url: BaseUrl = "",
    api_key: ApiKey = "",
) -> None:
    """Fetch a PEFT folder: it opens with `PeftModel.from_pretrained`.

    A training checkpoint also brings the optimizer's state, so that `import` can go on exactly.
    """
    at = TinkerPath.parse(path)
    folder = _empty(out or Path(f"{at.run_id.replace(':', '-')}-{at.name}"))
    fetch_adapter(Remote(base_url, api_key), at, folder, adapter_only=adapter_only)
    typer.echo(folder)


def fetch_adapter(remote: Remote, at: TinkerPath, folder: Path, *, adapter_only: bool) -> None:
    urls = remote.call("GET", f"/training_runs/{at.run_id}/checkpoints/{at.checkpoint_id}/files")[
        "urls"
    ]
    if adapter_only:
        urls = {name: url for name, url in urls.items() if name.removesuffix(".age") in ADAPTER}
    remote.fetch(urls, folder)


@app.command()
def merge(
    path: Path_,
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    untie_unembedding: Untie = False,
    format_: Annotated[str, typer.Option("--format", help="merged, or gguf.")] = "merged",
    base_url: BaseUrl = "",
    api_key: ApiKey = "",
) -> None:
    """Merge a checkpoint into its base model, and fetch the whole model in transformers' layout."""
    folder = _empty(out)
    result = fetch_merged(
        Remote(base_url, api_key), path, folder, untie=untie_unembedding, format_=format_
    )
    console.print(
        f"{result['merged_tensors']} tensors merged with "
        f"{result['peak_memory_bytes'] / 1e6:.0f} MB of memory at most."
    )
    if result["untied"]:
        console.print("The unembedding is a tensor of its own now: tie_word_embeddings is false.")
    typer.echo(folder)


def fetch_merged(
    remote: Remote, path: str, folder: Path, *, untie: bool, format_: str = "merged"
) -> dict[str, Any]:
    body = {"tinker_path": path, "format": format_, "untie_unembedding": untie}
    job = remote.call("POST", "/exports", json=body)
    result = remote.wait(job)
    remote.fetch(remote.call("GET", f"/jobs/{job['job_id']}/files")["urls"], folder)
    return result


@app.command("import")
def import_adapter(
    folder: Annotated[Path, typer.Argument(help="A PEFT adapter: config and safetensors.")],
    base_model: Annotated[
        str | None, typer.Option(help="As served; default: what the adapter's config says.")
    ] = None,
    name: Annotated[str, typer.Option(help="Of the checkpoint.")] = "imported",
    project: Annotated[str | None, typer.Option(help="Project of the run.")] = None,
    fresh_optimizer: Annotated[
        bool, typer.Option("--fresh-optimizer", help="Leave an optimizer's state behind.")
    ] = False,
    base_url: BaseUrl = "",
    api_key: ApiKey = "",
) -> None:
    """Make a PEFT adapter a training run's checkpoint, and print its path."""
    remote = Remote(base_url, api_key)
    config_file = folder / "adapter_config.json"
    if not config_file.is_file() or not (folder / "adapter_model.safetensors").is_file():
        raise Problem(
            f"{folder} holds no {' and '.join(ADAPTER)}; pickled .bin files are not read."
        )
    fields = {
        "base_model": base_model or _base_model(config_file),
        "name": name,
        "project_id": project or "",
    }
    with contextlib.ExitStack() as stack:
        parts = {"adapter_config": config_file, "adapter_model": folder / ADAPTER[1]}
        optimizer, ours = folder / "optimizer.safetensors", folder / "tinsmith.json"
        if optimizer.is_file() and ours.is_file() and not fresh_optimizer:
            parts |= {"optimizer": optimizer, "tinsmith": ours}
        files = {part: stack.enter_context(file.open("rb")) for part, file in parts.items()}
        job = remote.call("POST", "/imports", data=fields, files=files)
    result = remote.wait(job)
    if result["fresh_modules"]:
        console.print(
            f"{len(result['fresh_modules'])} modules begin untrained, since the adapter has none "
            f"for them: {', '.join(result['fresh_modules'][:4])}, ..."
        )
    console.print(
        f"Optimizer: its state after {result['steps']} steps is carried."
        if result["steps"]
        else "Optimizer: it begins fresh."
    )
    typer.echo(result["tinker_path"])


@app.command()
def push(
    path: Path_,
    repo: Annotated[
        str, typer.Argument(help="<owner>/<name> on a hub; or a folder, from ./ or /.")
    ],
    merged: Annotated[
        bool, typer.Option("--merged", help="The whole model, not the adapter.")
    ] = False,
    untie_unembedding: Untie = False,
    private: Annotated[
        bool, typer.Option("--private", help="A new repository is private.")
    ] = False,
    endpoint: Annotated[
        str | None, typer.Option(envvar="HF_ENDPOINT", help="Address of the hub.")
    ] = None,
    token: Annotated[
        str | None, typer.Option(envvar="HF_TOKEN", help="Key of the hub.", show_default=False)
    ] = None,
    base_url: BaseUrl = "",
    api_key: ApiKey = "",
) -> None:
    """Publish a checkpoint with a model card to a hub, or to a folder laid out as a repository there."""
    remote, at = Remote(base_url, api_key), TinkerPath.parse(path)
    info = remote.call("POST", "/weights_info", json={"tinker_path": path})
    with tempfile.TemporaryDirectory(prefix="tinsmith-push-") as made:
        folder = Path(made)
        if merged:
            fetch_merged(remote, path, folder, untie=untie_unembedding)
        else:
            fetch_adapter(remote, at, folder, adapter_only=True)
        write_card(folder, path, info, merged=merged)
        if repo.startswith((".", "/")):
            where = publish_folder(folder, _empty(Path(repo)))
        else:
            where = publish_to_hub(folder, repo, path, endpoint, token, private=private)
    typer.echo(where)


@app.command()
def delete(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="One or several.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    base_url: BaseUrl = "",
    api_key: ApiKey = "",
) -> None:
    """Delete checkpoints for good."""
    remote, parsed = Remote(base_url, api_key), [TinkerPath.parse(path) for path in paths]
    if not yes and not typer.confirm(f"Delete {len(paths)} checkpoint(s) for good?"):
        raise Problem("Nothing was deleted.")
    for at in parsed:
        remote.call("DELETE", f"/training_runs/{at.run_id}/checkpoints/{at.checkpoint_id}")
        typer.echo(f"{at} is deleted.")


def _empty(folder: Path) -> Path:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Problem(f"{folder} is there already; name another folder.")
    return folder


def _run(run_id: str) -> str:
    return TinkerPath.parse(f"tinker://{run_id}/weights/any", "--run").run_id


def _base_model(config_file: Path) -> str:
    try:
        named = json.loads(config_file.read_text()).get("base_model_name_or_path")
    except (ValueError, AttributeError):
        raise Problem(f"{config_file} does not parse.") from None
    if not named:
        raise Problem("The adapter names no base model; give --base-model.")
    return str(named)
