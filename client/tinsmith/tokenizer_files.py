"""The files of a base model's tokenizer, fetched from the service once. It has never heard of tokens."""

import os
from pathlib import Path

import httpx


def tokenizer_folder(base_url: str, api_key: str, base_model: str) -> Path:
    """Where its files are kept: in the user's cache, under the model's digest."""
    with httpx.Client(base_url=base_url, headers={"X-API-Key": api_key}, timeout=60) as http:
        found = http.get("/api/v1/tokenizers", params={"base_model": base_model})
        found.raise_for_status()
        files: dict[str, str] = found.json()["files"]
        folder = _cache() / next(iter(files.values())).split("/")[-2]
        folder.mkdir(parents=True, exist_ok=True)
        for name, url in files.items():
            target = folder / Path(name).name
            if not target.exists():
                answer = http.get(url).raise_for_status()
                partial = target.with_suffix(f".{os.getpid()}")
                partial.write_bytes(answer.content)
                partial.rename(target)
    return folder


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tinsmith" / "tokenizers"
