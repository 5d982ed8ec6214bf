"""The OpenAI-compatible endpoint by the real `openai` package, and by plain HTTP where that hides things."""

import pytest
from openai import OpenAI

from tests.contract.conftest import BASE_MODEL, SECOND_MODEL, Service


def client(service: Service, prefix: str = "", key: str | None = None) -> OpenAI:
    return OpenAI(base_url=f"{service.url}{prefix}/v1", api_key=key or service.api_key)


@pytest.mark.parametrize("prefix", ["", "/oai/api", "/services/tinker-prod/oai/api"])
def test_models_are_listed_at_every_address(service: Service, prefix: str) -> None:
    names = [one.id for one in client(service, prefix).models.list()]
    assert names[:2] == [BASE_MODEL, SECOND_MODEL]


def test_a_completion_streams_what_it_says_whole(service: Service) -> None:
    asked = {
        "model": BASE_MODEL,
        "prompt": "w3 w4 w5",
        "max_tokens": 12,
        "temperature": 0.7,
        "seed": 11,
    }
    whole = client(service).completions.create(**asked)
    pieces = list(client(service).completions.create(**asked, stream=True))
    assert "".join(one.choices[0].text for one in pieces) == whole.choices[0].text
    assert pieces[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert len(pieces) > 3
    assert whole.usage.prompt_tokens == 3
