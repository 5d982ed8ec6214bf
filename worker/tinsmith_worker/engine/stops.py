"""When a sample has ended, and why."""

from collections.abc import Sequence

from tinsmith_worker.engine.base_model import BaseModel
from tinsmith_worker.engine.values import SampleRequest


def stop_reason(
    model: BaseModel, request: SampleRequest, tokens: list[int], limit: int
) -> str | None:
    """stop, length, or None while it goes on. Without stops of its own, any end token is one."""
    if request.stop is None:
        stopped = tokens[-1] in model.eos_token_ids
    else:
        stopped = tokens[-1] in request.stop or _ends_with(model, tokens, request.stop)
    if stopped:
        return "stop"
    return "length" if len(tokens) >= limit else None


def _ends_with(model: BaseModel, tokens: list[int], stops: Sequence[str | int]) -> bool:
    """Whether the text now contains a stop: any earlier one would have ended the sample.

    A token is at least one byte of text, so a window of the longest stop's bytes and a few more (for
    special tokens and letters cut in the middle) is enough. It is decoded once for all stops.
    """
    texts = [stop for stop in stops if isinstance(stop, str)]
    if not texts:
        return False
    window = tokens[-(max(len(stop.encode()) for stop in texts) + 8) :]
    text = model.tokenizer.decode(window, skip_special_tokens=False)
    return any(stop in text for stop in texts)
