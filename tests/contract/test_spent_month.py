"""A spent month as the official SDK meets it: told at once where a run begins, saved work still works."""

import pytest
import tinker
from redis import Redis
from tinker._exceptions import BillingError
from tinsmith.protocol import keys
from tinsmith_server.accounts.tables import LimitRow
from tinsmith_server.cli.keys import in_transaction
from tinsmith_server.db import ApiKey
from tinsmith_server.settings import Settings

from tests.contract.conftest import BASE_MODEL, Service


def allow(service: Service, key: str, monthly_tokens: int) -> None:
    """As the console does: in SQL, and told to every process."""
    settings = Settings.from_environment(service.environment)

    async def write(sql) -> str:  # type: ignore[no-untyped-def]
        row = await sql.get_one(ApiKey, key.split("-")[1])
        limits = LimitRow(organization_id=row.organization_id, subject="key", subject_id=row.id)
        limits = await sql.merge(limits)
        limits.monthly_tokens = monthly_tokens
        return str(row.organization_id)

    organization = in_transaction(settings, write)
    redis = Redis.from_url(settings.redis_url)
    redis.xadd(keys.CTL, {"limits": organization})
    redis.close()


def train_on(run: tinker.TrainingClient, datum: tinker.types.Datum) -> None:
    for _ in range(50):  # it is told in one of the first
        run.forward_backward([datum], "cross_entropy").result(60)


def test_the_sdk_is_told_at_once_and_what_was_trained_is_saved(service: Service) -> None:
    key = service.new_key("spender")
    client = tinker.ServiceClient(base_url=service.url, api_key=key)
    run = client.create_lora_training_client(BASE_MODEL, rank=2, seed=1).result(60)
    tokens = [3, 4, 5]
    datum = tinker.types.Datum(
        model_input=tinker.types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": [1.0, 1.0]},  # type: ignore[dict-item]
    )
    run.forward_backward([datum], "cross_entropy").result(60)
    run.optim_step(tinker.types.AdamParams()).result(60)
    allow(service, key, monthly_tokens=1)
    with pytest.raises(tinker.RequestFailedError, match="monthly_tokens"):
        train_on(run, datum)
    assert run.save_state("kept").result(60).path.endswith("/kept")
    with pytest.raises(BillingError, match="monthly_tokens"):
        client.create_lora_training_client(BASE_MODEL, rank=2, seed=1).result(60)
    allow(service, key, monthly_tokens=1_000_000)
    run.forward_backward([datum], "cross_entropy").result(60)
