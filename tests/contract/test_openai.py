"""The OpenAI-compatible endpoint by the real `openai` package, and by plain HTTP where that hides things."""

import math
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import openai
import pytest
import tinker
from openai import OpenAI

from tests.contract.conftest import BASE_MODEL, CONTEXT, SECOND_MODEL, Service
from tests.contract.test_reports import tokens, usage

PROMPT = "w3 w4 w5"


def client(service: Service, prefix: str = "", key: str | None = None) -> OpenAI:
    return OpenAI(
        base_url=f"{service.url}{prefix}/v1", api_key=key or service.api_key, max_retries=0
    )


@pytest.fixture(scope="module")
def ai(service: Service) -> OpenAI:
    return client(service)


@pytest.fixture(scope="module")
def sdk(service: Service) -> Iterator[tinker.ServiceClient]:
    with tinker.ServiceClient(base_url=service.url, api_key=service.api_key) as made:
        yield made


@pytest.fixture(scope="module")
def checkpoint(sdk: tinker.ServiceClient) -> str:
    run = sdk.create_lora_training_client(base_model=BASE_MODEL, rank=4, seed=3)
    datum = tinker.Datum(
        model_input=tinker.ModelInput.from_ints([5, 9, 14]),
        loss_fn_inputs={"target_tokens": [9, 14, 3], "weights": [1.0, 1.0, 1.0]},
    )
    for _ in range(3):
        run.forward_backward([datum], "cross_entropy").result(60)
        run.optim_step(tinker.AdamParams(learning_rate=0.05)).result(60)
    return str(run.save_weights_for_sampler("asked").result(60).path)


@pytest.mark.parametrize("prefix", ["", "/oai/api", "/services/tinker-prod/oai/api"])
def test_models_are_listed_at_every_address(service: Service, prefix: str) -> None:
    names = [one.id for one in client(service, prefix).models.list()]
    assert names[:2] == [BASE_MODEL, SECOND_MODEL]


def test_a_checkpoint_is_listed_to_its_owner_alone(service: Service, checkpoint: str) -> None:
    assert checkpoint in [one.id for one in client(service).models.list()]
    other = client(service, key=service.other_key)
    assert checkpoint not in [one.id for one in other.models.list()]
    with pytest.raises(openai.NotFoundError) as refused:
        other.completions.create(model=checkpoint, prompt=PROMPT)
    assert refused.value.param == "model"
    assert refused.value.code == "model_not_found"


def test_a_completion_streams_what_it_says_whole(ai: OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": BASE_MODEL,
        "prompt": [PROMPT, "w7"],
        "max_tokens": 12,
        "temperature": 0.7,
        "seed": 11,
        "n": 2,
        "logprobs": 2,
    }
    whole = ai.completions.create(**asked)
    options = {"include_usage": True}
    pieces = list(ai.completions.create(**asked, stream=True, stream_options=options))
    for choice in whole.choices:
        mine = [one for piece in pieces for one in piece.choices if one.index == choice.index]
        assert "".join(one.text for one in mine) == choice.text
        assert mine[-1].finish_reason == choice.finish_reason
        parts = [one.logprobs for one in mine if one.logprobs]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            together = [row for part in parts for row in getattr(part, name)]
            assert together == getattr(choice.logprobs, name)
    assert len(whole.choices) == 4
    assert pieces[-1].choices == []
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert getattr(pieces[-1].usage, name) == getattr(whole.usage, name)
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == 4


def test_a_stream_comes_token_by_token(ai: OpenAI) -> None:
    asked: dict[str, Any] = {"model": BASE_MODEL, "prompt": PROMPT, "max_tokens": 20, "seed": 2}
    pieces = list(ai.completions.create(**asked, stream=True, extra_body={"ignore_eos": True}))
    assert len(pieces) == 21  # the last one says why it ended


def test_it_says_what_the_sampling_client_says(
    ai: OpenAI, sdk: tinker.ServiceClient, checkpoint: str
) -> None:
    """Text, token list, short names, and the SDK: one model, one answer."""
    params = tinker.SamplingParams(max_tokens=10, temperature=0.8, seed=5, stop=[1])
    sampler = sdk.create_sampling_client(model_path=checkpoint)
    [sequence] = (
        sampler.sample(tinker.ModelInput.from_ints([3, 4, 5]), 1, params).result(60).sequences
    )
    expected = [f"w{token}" for token in sequence.tokens]
    asked: dict[str, Any] = {"max_tokens": 10, "temperature": 0.8, "seed": 5, "logprobs": 0}
    names = [checkpoint, checkpoint.removeprefix("tinker://"), f"{BASE_MODEL};{checkpoint}"]
    for name in names:
        for prompt in (PROMPT, [3, 4, 5], [[3, 4, 5]]):
            made = ai.completions.create(model=name, prompt=prompt, **asked)
            logprobs = made.choices[0].logprobs
            assert logprobs is not None
            assert [word.strip() for word in logprobs.tokens or []] == expected
            assert logprobs.token_logprobs == pytest.approx(sequence.logprobs)


def test_short_names(ai: OpenAI, service: Service) -> None:
    asked: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 8, "temperature": 0}
    full = ai.completions.create(model=SECOND_MODEL, **asked).choices[0].text
    assert ai.completions.create(model="llama-two", **asked).choices[0].text == full
    assert ai.completions.create(model="mine", **asked).choices[0].text == full
    named = client(service, f"/m/{quote(SECOND_MODEL, safe='')}")
    assert named.completions.create(model="ignored", **asked).choices[0].text == full


def test_a_stop_ends_the_text_before_it(ai: OpenAI) -> None:
    asked: dict[str, Any] = {"model": BASE_MODEL, "prompt": PROMPT, "max_tokens": 30, "seed": 4}
    body = {"ignore_eos": True}
    words = ai.completions.create(**asked, extra_body=body).choices[0].text.split()
    place = next(at for at, word in enumerate(words[3:], 3) if word not in words[:at])
    stops = [*(f"never{index}" for index in range(40)), f"{words[place]}"]
    # A stop is text: w1 would end a sample at w12 too, so the first word that contains it counts.
    first = next(at for at, word in enumerate(words) if words[place] in word)
    stopped = ai.completions.create(**asked, stop=stops, extra_body=body)
    assert stopped.choices[0].text.split() == words[:first]
    assert stopped.choices[0].finish_reason == "stop"
    streamed = ai.completions.create(**asked, stop=stops, extra_body=body, stream=True)
    text = "".join(piece.choices[0].text for piece in streamed)
    assert text == stopped.choices[0].text


def test_echo_scores_the_prompt_and_one_token_more(ai: OpenAI, sdk: tinker.ServiceClient) -> None:
    """As lm-eval asks: one entry per prompt token, none for the first, and exactly one after them."""
    prompts = [[3, 4, 5, 6], [7, 8]]
    made = ai.completions.create(
        model=BASE_MODEL, prompt=prompts, max_tokens=1, temperature=0, logprobs=1, echo=True
    )
    sampler = sdk.create_sampling_client(base_model=BASE_MODEL)
    for prompt, choice in zip(prompts, made.choices, strict=True):
        expected = sampler.compute_logprobs(tinker.ModelInput.from_ints(prompt)).result(60)
        logprobs = choice.logprobs
        assert logprobs is not None
        assert logprobs.token_logprobs is not None
        assert logprobs.top_logprobs is not None
        assert logprobs.token_logprobs[0] is None
        assert logprobs.token_logprobs[1:-1] == pytest.approx(expected[1:])
        assert len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == len(prompt) + 1
        for own, top in zip(logprobs.token_logprobs[1:], logprobs.top_logprobs[1:], strict=True):
            assert max(top.values()) >= own
        assert logprobs.token_logprobs[-1] == max(logprobs.top_logprobs[-1].values())
    whole = ai.completions.create(
        model=BASE_MODEL, prompt=[3, 4, 5, 6], max_tokens=0, logprobs=0, echo=True
    )
    assert whole.choices[0].text == "w3 w4 w5 w6"
    assert whole.choices[0].logprobs is not None
    assert len(whole.choices[0].logprobs.tokens or []) == 4


def test_the_keys_of_top_logprobs_do_not_collide(ai: OpenAI) -> None:
    made = ai.completions.create(model=BASE_MODEL, prompt=PROMPT, max_tokens=1, logprobs=90)
    logprobs = made.choices[0].logprobs
    assert logprobs is not None
    [top] = logprobs.top_logprobs or []
    assert len(top) in (90, 91)
    assert sum(math.exp(value) for value in top.values()) <= 1.0001


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"presence_penalty": 0.5}, "presence_penalty"),
    ({"frequency_penalty": -1}, "frequency_penalty"),
    ({"repetition_penalty": 1.1}, "repetition_penalty"),
    ({"min_p": 0.1}, "min_p"),
    ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"best_of": 3}, "best_of"),
    ({"suffix": "x"}, "suffix"),
    ({"temprature": 1}, "temprature"),
    ({"temperature": -1}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_k": -5}, "top_k"),
    ({"n": 0}, "n"),
    ({"n": 1000}, "n"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": "many"}, "max_tokens"),
    ({"logprobs": 1000}, "logprobs"),
    ({"stop": [""]}, "stop"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": [[-1]]}, "prompt"),
    ({"prompt": [[96]]}, "prompt"),
    ({"prompt": [1 << 70]}, "prompt"),
    ({"prompt": ["a", 3]}, "prompt"),
    ({"prompt": [3] * CONTEXT}, "prompt"),
    ({"max_tokens": 1 << 70}, "max_tokens"),
    ({"top_k": 1 << 70}, "top_k"),
    ({"stop_token_ids": [1 << 70]}, "stop_token_ids"),
    ({"n": 128, "prompt": ["w3"] * 64}, "n"),
    ({"model": "nobody/nothing"}, "model"),
    ({"model": ""}, "model"),
    ({"model": "tinker://x"}, "model"),
    ({"model": "tinker://sess-1:train:0/sampler_weights/x"}, "model"),
    ({"model": "tinker://sess-1:train:0/external_weights/x"}, "model"),
]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("body", "param"), REFUSED)
def test_what_cannot_be_is_refused_by_name_and_for_good(
    service: Service, body: dict[str, Any], param: str, stream: bool
) -> None:
    given = {"model": BASE_MODEL, "prompt": PROMPT, "max_tokens": 4} | body
    if stream and "stream_options" not in body:
        given["stream"] = True
    headers = {"Authorization": f"Bearer {service.api_key}"}
    answer = httpx.post(f"{service.url}/v1/completions", json=given, headers=headers, timeout=60)
    assert answer.status_code in (400, 404), answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param, error
    assert answer.headers["content-type"] == "application/json"


def test_a_seed_may_be_any_number(ai: OpenAI) -> None:
    for seed in (-1, 1 << 70):
        asked: dict[str, Any] = {"model": BASE_MODEL, "prompt": PROMPT, "seed": seed}
        once, again = (ai.completions.create(**asked).choices[0].text for _ in range(2))
        assert once == again


def test_a_wrong_key_and_no_key(service: Service) -> None:
    with pytest.raises(openai.AuthenticationError) as refused:
        client(service, key="tml-wrong").models.list()
    assert refused.value.code == "invalid_api_key"
    assert httpx.get(f"{service.url}/v1/models").status_code == 401
    for headers in (
        {"X-API-Key": service.api_key},
        {"Authorization": f"Bearer {service.api_key}"},
    ):
        assert httpx.get(f"{service.url}/v1/models", headers=headers).is_success


def test_an_address_that_is_not_there(service: Service) -> None:
    with pytest.raises(openai.NotFoundError, match="/v1/embeddings"):
        client(service).embeddings.create(model=BASE_MODEL, input="x")


def test_bodies_that_are_none(service: Service) -> None:
    headers = {"X-API-Key": service.api_key}
    for content in (b"", b"{", b"[]", b"null", b'{"model": 3}', b"\xff\xfe"):
        for route in ("completions", "chat/completions"):
            answer = httpx.post(f"{service.url}/v1/{route}", content=content, headers=headers)
            assert answer.status_code == 400, (content, answer.text)
            assert answer.json()["error"]["message"]


def test_a_model_without_a_chat_template_says_so(ai: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="chat template"):
        ai.chat.completions.create(model=BASE_MODEL, messages=[{"role": "user", "content": "w3"}])


def test_tokens_are_counted_for_the_organization(service: Service) -> None:
    key = service.new_key("counted")
    asked: dict[str, Any] = {"model": BASE_MODEL, "max_tokens": 6, "n": 2}
    made = client(service, key=key).completions.create(prompt=[3, 4, 5], **asked)
    assert made.usage is not None
    counted = tokens(usage(tinker.AdminClient(base_url=service.url, api_key=key)))
    assert counted["sampling_sample"] == made.usage.completion_tokens
    assert counted["sampling_prefill"] == 3


def test_a_tokenizer_for_clients_that_have_none(service: Service) -> None:
    headers = {"Authorization": f"Bearer {service.api_key}"}
    root = f"{service.url}/m/{quote(BASE_MODEL, safe='')}"
    with httpx.Client(base_url=root, headers=headers) as http:
        assert "eos_token" in http.get("/tokenizer_info").json()
        asked = {"prompt": PROMPT, "add_special_tokens": False}
        tokens = http.post("/tokenize", json=asked).json()["tokens"]
        assert tokens == [3, 4, 5]
        assert http.post("/detokenize", json={"tokens": tokens}).json() == {"prompt": PROMPT}
        assert http.post("/detokenize", json={"tokens": [-1]}).status_code == 400
    assert httpx.get(f"{root}/tokenizer_info").status_code == 401
