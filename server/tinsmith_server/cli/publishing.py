"""A folder as a model repository: with a card, in a folder of its own or on a hub."""

import shutil
from pathlib import Path
from typing import Any

from tinsmith_server.problems import Problem

_CARD = """---
base_model: {base_model}
library_name: {library}
pipeline_tag: text-generation
tags:
- lora
- tinsmith
---

# {title}

{what} of `{base_model}`, trained with LoRA (rank {rank}, alpha 32) on {places}.
Saved as `{path}`.

```python
{example}
```
{note}"""
_ADAPTER_EXAMPLE = """from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{base_model}")
model = PeftModel.from_pretrained(model, "<this repository>")"""
_MERGED_EXAMPLE = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("<this repository>")
tokenizer = AutoTokenizer.from_pretrained("<this repository>")"""
_HEAD_NOTE = """
The unembedding is trained too. Where the base model's unembedding is its embedding, this adapter cannot be
merged exactly unless the two are made apart first (`tie_word_embeddings: false`).
"""
_ATTRIBUTES = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


def write_card(folder: Path, path: str, info: dict[str, Any], *, merged: bool) -> None:
    """README.md, as hubs read it."""
    places = [
        word
        for word, field in (
            ("attention", "train_attn"),
            ("MLP", "train_mlp"),
            ("unembedding", "train_unembed"),
        )
        if info[field]
    ]
    example = _MERGED_EXAMPLE if merged else _ADAPTER_EXAMPLE
    card = _CARD.format(
        base_model=info["base_model"],
        library="transformers" if merged else "peft",
        title=path.rsplit("/", 1)[-1],
        what="A tuned model made" if merged else "An adapter",
        rank=info["lora_rank"],
        places=", ".join(places),
        path=path,
        example=example.format(base_model=info["base_model"]),
        note=_HEAD_NOTE if info["train_unembed"] and not merged else "",
    )
    (folder / "README.md").write_text(card)


def publish_folder(folder: Path, target: Path) -> str:
    target.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        shutil.copy2(file, target / file.name)
    (target / ".gitattributes").write_text(_ATTRIBUTES)
    return str(target)


def publish_to_hub(
    folder: Path, repo: str, path: str, endpoint: str | None, token: str | None, *, private: bool
) -> str:
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError:
        raise Problem("Publishing to a hub needs `pip install huggingface_hub`.") from None
    hub = HfApi(endpoint=endpoint, token=token)
    try:
        hub.create_repo(repo, private=private, exist_ok=True)
        commit = hub.upload_folder(repo_id=repo, folder_path=folder, commit_message=f"{path}"[:200])
    except HFValidationError as error:
        raise Problem(f"repo: {str(error).splitlines()[0][:200]}") from None
    except HfHubHTTPError as error:
        raise Problem(f"The hub refused: {str(error).splitlines()[0][:200]}") from None
    except OSError as error:
        raise Problem(f"The hub cannot be reached ({type(error).__name__}).") from None
    return str(commit.commit_url)
