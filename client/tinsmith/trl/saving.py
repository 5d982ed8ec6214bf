"""A trained adapter as a folder on this machine: PEFT's, and with the base model in it transformers' too."""

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import httpx

_FILES = ("adapter_config.json", "adapter_model.safetensors")
_WHOLE = ("config.json", "generation_config.json", "model*.safetensors", "*.safetensors.index.json")


def save_adapter(run: Any, name: str, folder: Path, base: str, tokenizer: Any) -> None:
    """The run's weights as they are now; `base` is what PEFT loads under them."""
    path: str = run.save_weights_for_sampler(name).result().path
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(_archive(run, path))) as archive:
        for file in _FILES:
            content = archive.extractfile(file)
            assert content is not None
            (folder / file).write_bytes(content.read())
    config = folder / _FILES[0]
    told = json.loads(config.read_text(encoding="utf-8")) | {"base_model_name_or_path": base}
    config.write_text(json.dumps(told, indent=2), encoding="utf-8")
    tokenizer.save_pretrained(folder)


def save_base(model: Any, folder: Path) -> bool:
    """The frozen model beside its adapter, where it is at hand: a loaded one, or a folder's.

    transformers puts the adapter of such a folder onto the model in it, so whatever opens a model's folder
    by its path, as lm_eval does, opens this one.
    """
    if not isinstance(model, str):
        model.save_pretrained(folder)
        return True
    files = [file for pattern in _WHOLE for file in Path(model).glob(pattern)]
    if not any(file.suffix == ".safetensors" for file in files):
        return False
    for file in files:
        if file.parent.resolve() != folder.resolve():
            shutil.copyfile(file, folder / file.name)
    return True


def _archive(run: Any, path: str) -> bytes:
    run_id, checkpoint = path.removeprefix("tinker://").split("/", 1)
    where = f"/api/v1/training_runs/{run_id}/checkpoints/{checkpoint}/archive"
    headers = {"X-API-Key": run.api_key}
    with httpx.Client(base_url=run.base_url, headers=headers, timeout=600) as http:
        link = http.get(where).headers.get("location") or http.get(where).raise_for_status().url
    return httpx.get(str(link), timeout=600).raise_for_status().content
