"""A base model's tokenizer, from the service itself: no hub is needed."""

from typing import Any

from tinsmith.tokenizer_files import tokenizer_folder


def fetch_tokenizer(base_url: str, api_key: str, base_model: str) -> Any:
    """Needs transformers."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_folder(base_url, api_key, base_model))
