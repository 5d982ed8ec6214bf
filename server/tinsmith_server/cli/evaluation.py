"""`tinsmith eval`: lm-eval against the service, with nothing exported and no second GPU."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import httpx
import typer
from tinsmith.protocol.paths import SCHEME
from tinsmith.tokenizer_files import tokenizer_folder

from tinsmith_server.cli.remote import ApiKey, BaseUrl, Remote
from tinsmith_server.problems import Problem


def evaluate(
    model: Annotated[str, typer.Option(help="tinker:// path, or a base model as served.")],
    tasks: Annotated[str, typer.Option(help="Names, separated by commas.")],
    include_path: Annotated[
        Path | None, typer.Option(help="Folder of task files of your own; they need no hub.")
    ] = None,
    num_fewshot: Annotated[int | None, typer.Option(help="Examples before each question.")] = None,
    limit: Annotated[float | None, typer.Option(help="Questions a task, or their share.")] = None,
    apply_chat_template: Annotated[
        bool, typer.Option("--apply-chat-template", help="As a chat model is asked.")
    ] = False,
    output_path: Annotated[Path | None, typer.Option(help="Where results go, as JSON.")] = None,
    log_samples: Annotated[bool, typer.Option("--log-samples", help="Answers too.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts of a request.")] = 16,
    num_concurrent: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 1,
    gen_kwargs: Annotated[str | None, typer.Option(help="As lm-eval reads them.")] = None,
    base_url: BaseUrl = "",
    api_key: ApiKey = "",
) -> None:
    """Score a model or checkpoint with lm-eval over the service's OpenAI-compatible endpoint."""
    if importlib.util.find_spec("lm_eval") is None:
        raise Problem("`tinsmith eval` needs lm-eval: pip install 'tinsmith[eval]'.")
    remote = Remote(base_url, api_key)
    options: dict[str, object | None] = {
        "--model": "local-completions",
        "--model_args": _model_args(remote, model, num_concurrent),
        "--tasks": tasks,
        "--batch_size": batch_size,
        "--include_path": include_path,
        "--num_fewshot": num_fewshot,
        "--limit": limit,
        "--output_path": output_path,
        "--gen_kwargs": gen_kwargs,
    }
    command = [sys.executable, "-m", "lm_eval", "run"]
    command += [str(part) for pair in options.items() if pair[1] is not None for part in pair]
    command += ["--apply_chat_template"] if apply_chat_template else []
    command += ["--log_samples"] if log_samples else []
    status = subprocess.run(command, env=os.environ | {"OPENAI_API_KEY": remote.api_key}).returncode
    if status:
        raise Problem(f"lm-eval ended with status {status}.")


def _model_args(remote: Remote, model: str, num_concurrent: int) -> str:
    """lm-eval reads `key=value,key=value`, so no value may hold either sign."""
    if "," in model or "=" in model:
        raise Problem(f"--model: {model!r} holds ',' or '=', which lm-eval cannot be told.")
    base_model, context = _base_of(remote, model)
    try:
        tokenizer = tokenizer_folder(remote.base_url, remote.api_key, base_model)
    except httpx.HTTPError:
        raise Problem(f"The service has no tokenizer for {base_model}.") from None
    values = {
        "model": model,
        "base_url": f"{remote.base_url}/v1/completions",
        "tokenizer_backend": "huggingface",
        "tokenizer": tokenizer,
        "num_concurrent": num_concurrent,
        "max_length": context,
        "max_retries": 3,
    }
    return ",".join(f"{name}={value}" for name, value in values.items())


def _base_of(remote: Remote, model: str) -> tuple[str, int]:
    """The base model whose tokenizer serves, and its context."""
    name = model
    if model.startswith(SCHEME):
        name = remote.call("POST", "/weights_info", json={"tinker_path": model})["base_model"]
    served = remote.call("GET", "/get_server_capabilities")["supported_models"]
    for one in served:
        if name in (one["model_name"], one["model_name"].rpartition("/")[2]):
            return one["model_name"], one["max_context_length"]
    names = ", ".join(one["model_name"] for one in served)
    raise Problem(f"--model: {name!r} is not served; give a tinker:// path, or one of {names}.")
