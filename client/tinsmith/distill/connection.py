"""Which service a training client talks to, and what that service offers.

The official SDK's clients and ours are told apart here and nowhere else.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from tinsmith import types as thin
from tinsmith.sampling_client import SamplingClient
from tinsmith.service_client import ServiceClient
from tinsmith.tokenizers import fetch_tokenizer
from tinsmith.training_client import TrainingClient

_MISSING = 404


@dataclass(frozen=True)
class Connection:
    base_url: str
    api_key: str = field(repr=False)
    losses: Mapping[str, int]
    """Losses beyond Tinker's. Empty for a service that does not say that it has any."""
    extensions: frozenset[str]
    contexts: Mapping[str, int]
    """Tokens that each base model can read, where the service says so."""

    def service(self) -> ServiceClient:
        return ServiceClient(base_url=self.base_url, api_key=self.api_key)


def connect(run: Any) -> Connection:
    """Asks the service of a training client once what it offers."""
    base_url, api_key = _address(run)
    headers = {"X-API-Key": api_key}
    with httpx.Client(base_url=base_url, headers=headers, timeout=60) as http:
        answer = http.get("/api/v1/extensions")
        contexts = _contexts(http.get("/api/v1/get_server_capabilities"))
    if answer.status_code == _MISSING:
        return Connection(base_url, api_key, {}, frozenset(), contexts)
    told: dict[str, Any] = answer.raise_for_status().json()
    names = frozenset(one["name"] for one in told.get("extensions", ()))
    return Connection(base_url, api_key, told.get("losses", {}), names, contexts)


def _contexts(answer: httpx.Response) -> dict[str, int]:
    served = answer.raise_for_status().json()["supported_models"]
    lengths = {one.get("model_name"): one.get("max_context_length") for one in served}
    return {name: length for name, length in lengths.items() if name and length}


def types_of(client: Any) -> Any:
    """The module with the Datum, ModelInput, ... that a client takes."""
    if isinstance(client, TrainingClient | SamplingClient):
        return thin
    from tinker import types as official

    return official


def base_model_of(run: Any) -> str:
    name: str = run.get_info().model_data.model_name
    return name


def tokenizer_of(connection: Connection, run: Any, base_model: str) -> Any:
    """From the service where it keeps tokenizers, else from wherever the client finds it."""
    if "tokenizers" in connection.extensions:
        return fetch_tokenizer(connection.base_url, connection.api_key, base_model)
    return run.get_tokenizer()


def resolved(client: Any) -> Any:
    """A client, of which some SDKs return the promise."""
    return client.result() if hasattr(client, "result") else client


def _address(run: Any) -> tuple[str, str]:
    if isinstance(run, TrainingClient):
        return run.base_url, run.api_key
    known = (
        run.holder.shadow_config
    )  # what the official SDK gives to its clients in other processes
    return known.base_url, known.api_key
