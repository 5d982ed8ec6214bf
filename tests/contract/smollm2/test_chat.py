"""Chats with a real model: by the `openai` package, by litellm, and by clients that hang up."""

import threading
import time
from typing import Any

import httpx
import litellm
import msgspec
import openai
import pytest
from openai import OpenAI
from tinsmith.protocol import keys
from tinsmith.protocol.jobs import DrawnToken
from transformers import AutoTokenizer

from tests.contract.smollm2.conftest import SMOLLM2, Tuned

pytestmark = pytest.mark.filterwarnings("ignore")
ASK = [{"role": "user", "content": "What is the capital of France? One word."}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def ai(tuned: Tuned) -> OpenAI:
    base_url = f"{tuned.service.url}/v1"
    return OpenAI(base_url=base_url, api_key=tuned.service.api_key, max_retries=0, timeout=120)


def asked(**more: Any) -> dict[str, Any]:
    return {"model": SMOLLM2, "messages": ASK, "max_tokens": 12, "temperature": 0} | more


def test_a_chat_is_a_completion_of_the_rendered_template(ai: OpenAI, tuned: Tuned) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tuned.base)
    prompt = tokenizer.apply_chat_template(ASK, add_generation_prompt=True, return_dict=False)
    chat = ai.chat.completions.create(**asked())
    completion = ai.completions.create(model=SMOLLM2, prompt=prompt, max_tokens=12, temperature=0)
    assert chat.choices[0].message.role == "assistant"
    assert chat.choices[0].message.content == completion.choices[0].text
    assert "Paris" in completion.choices[0].text
    assert chat.choices[0].finish_reason == completion.choices[0].finish_reason
    assert chat.usage is not None
    assert chat.usage.prompt_tokens == len(prompt)


def test_a_chat_streams_what_it_says_whole(ai: OpenAI, tuned: Tuned) -> None:
    body = asked(model=tuned.path, n=2, temperature=0.9, seed=3, logprobs=True, top_logprobs=2)
    whole = ai.chat.completions.create(**body)
    usage = {"include_usage": True}
    chunks = list(ai.chat.completions.create(**body, stream=True, stream_options=usage))
    for choice in whole.choices:
        mine = [one for chunk in chunks for one in chunk.choices if one.index == choice.index]
        assert mine[0].delta.role == "assistant"
        assert "".join(one.delta.content or "" for one in mine) == choice.message.content
        assert mine[-1].finish_reason == choice.finish_reason
        told = [token for one in mine if one.logprobs for token in one.logprobs.content or []]
        assert choice.logprobs is not None
        assert told == choice.logprobs.content
        assert all(len(token.top_logprobs) == 2 for token in told)
        raw = b"".join(bytes(token.bytes or []) for token in told).decode()
        assert raw.removesuffix("<|im_end|>") == choice.message.content
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_many_streams_at_once_each_say_what_they_say_alone(ai: OpenAI) -> None:
    """Over the number of slots, so that some wait; bit by bit the same in exact mode."""
    bodies = [asked(temperature=1, seed=seed, max_tokens=6 + seed % 4) for seed in range(10)]
    alone = [ai.chat.completions.create(**body).choices[0].message.content for body in bodies]
    found: dict[int, str] = {}

    def read(at: int) -> None:
        chunks = ai.chat.completions.create(**bodies[at], stream=True)
        found[at] = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    threads = [threading.Thread(target=read, args=(at,)) for at in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [found[at] for at in range(len(bodies))] == alone


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content",
        ),
        ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"frequency_penalty": 1.5}, "frequency_penalty"),
    ],
)
def test_what_a_chat_cannot_be_is_refused_by_name(
    ai: OpenAI, body: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ai.chat.completions.create(**asked(**body))
    assert refused.value.param == param


def test_what_asks_for_nothing_is_taken(ai: OpenAI) -> None:
    nothing = {"presence_penalty": 0, "tools": [TOOL], "tool_choice": "auto", "user": "me"}
    parts = [{"role": "user", "content": [{"type": "text", "text": ASK[0]["content"]}]}]
    plain = ai.chat.completions.create(**asked()).choices[0].message.content
    found = ai.chat.completions.create(**asked(messages=parts, **nothing))
    assert found.choices[0].message.content == plain


def test_litellm_asks_and_streams(tuned: Tuned, ai: OpenAI) -> None:
    litellm.suppress_debug_info = True
    known = {"api_base": f"{tuned.service.url}/v1", "api_key": tuned.service.api_key}
    body = asked(model=f"openai/{tuned.path}")
    expected = ai.chat.completions.create(**asked(model=tuned.path)).choices[0].message.content
    whole = litellm.completion(**body, **known)
    assert whole.choices[0].message.content == expected
    chunks = litellm.completion(**body, **known, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
    text = litellm.text_completion(
        model=f"text-completion-openai/{tuned.path}",
        prompt="Paris is",
        max_tokens=4,
        temperature=0,
        **known,
    )
    same = ai.completions.create(model=tuned.path, prompt="Paris is", max_tokens=4, temperature=0)
    assert text.choices[0].text == same.choices[0].text
    with pytest.raises((litellm.NotFoundError, litellm.BadRequestError)):
        litellm.completion(**body | {"model": "openai/tinker://s:train:0/weights/x"}, **known)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_client_that_hangs_up_frees_its_slot_within_one_step(tuned: Tuned, stream: bool) -> None:
    """Each step tells its tokens in one message, so messages after the cancellation are steps after it."""
    body = asked(max_tokens=4000, stream=stream, ignore_eos=True, temperature=1)
    headers = {"Authorization": f"Bearer {tuned.service.api_key}"}
    url = f"{tuned.service.url}/v1/chat/completions"
    before = tuned.redis.xlen(keys.CTL)
    if stream:
        with httpx.stream("POST", url, json=body, headers=headers, timeout=60) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: ")
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url, json=body, headers=headers, timeout=2)
    entry_id, request_id = cancellation(tuned, before)
    wait_until_idle(tuned)
    assert steps_with(tuned, request_id, entry_id) <= 1
    if stream:
        assert steps_with(tuned, request_id, b"0") >= 1


def cancellation(tuned: Tuned, before: int) -> tuple[bytes, str]:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if tuned.redis.xlen(keys.CTL) > before:
            [(entry_id, fields)] = tuned.redis.xrevrange(keys.CTL, count=1)
            return entry_id, fields[b"cancel"].decode()
        time.sleep(0.01)
    raise AssertionError("nobody was told that the client has gone")


def wait_until_idle(tuned: Tuned) -> None:
    """The worker holds no sampling job any more. Otherwise it would hold this one for minutes."""
    deadline = time.monotonic() + 30
    while any(tuned.redis.scard(held) for held in tuned.redis.scan_iter("held:*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def steps_with(tuned: Tuned, request_id: str, after: bytes) -> int:
    found = 0
    for stream in tuned.redis.scan_iter(keys.tokens("*")):
        for _, fields in tuned.redis.xrange(stream, min=b"(" + after):
            drawn = msgspec.msgpack.decode(fields[b"drawn"], type=list[DrawnToken])
            found += any(one.request_id == request_id for one in drawn)
    return found
