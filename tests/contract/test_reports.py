"""The audit log and the usage reports, against what a client really did."""

import datetime
from collections.abc import Iterator

import pytest
import tinker

from tests.contract.conftest import BASE_MODEL, Service
from tests.contract.test_clients import TOKENS, datum
from tests.contract.test_plain_http import forward_backward, new_run, result

PROMPT = tinker.ModelInput.from_ints(TOKENS)


@pytest.fixture
def key(service: Service, request: pytest.FixtureRequest) -> str:
    return service.new_key(request.node.name)


@pytest.fixture
def client(service: Service, key: str) -> Iterator[tinker.ServiceClient]:
    with tinker.ServiceClient(
        base_url=service.url, api_key=key, project_id="reports", user_metadata={"run": "7"}
    ) as client:
        yield client


@pytest.fixture
def admin(service: Service, key: str) -> tinker.AdminClient:
    return tinker.AdminClient(base_url=service.url, api_key=key)


def usage(admin: tinker.AdminClient) -> tinker.types.BillingUsageResponse:
    """Of this hour and the one before, if the clock turns meanwhile."""
    hour = datetime.datetime.now(datetime.UTC).replace(minute=0, second=0, microsecond=0)
    one = datetime.timedelta(hours=1)
    return admin.get_billing_usage(hour - one, hour + one).result(30)


def tokens(report: tinker.types.BillingUsageResponse) -> dict[str, int]:
    found: dict[str, int] = {}
    for event in report.data:
        info = event.event_info
        if isinstance(info, tinker.types.CheckpointBillingEvent):
            found["checkpoint"] = found.get("checkpoint", 0) + info.count
        elif not isinstance(info, tinker.types.StorageBillingEvent):
            found[info.type] = found.get(info.type, 0) + info.token_count
    return found


def test_every_token_is_counted_once(
    client: tinker.ServiceClient, admin: tinker.AdminClient, service: Service, key: str
) -> None:
    assert usage(admin).data == []
    run = client.create_lora_training_client(BASE_MODEL, rank=2).result(60)
    data = [datum(tinker)] * 3  # 7 tokens each, sent as two chunks
    run.forward_backward(data, "cross_entropy").result(60)
    run.forward([datum(tinker)], "cross_entropy").result(60)
    with pytest.raises(tinker.RequestFailedError):
        run.forward_backward([datum(tinker)], "no_such_loss").result(60)
    sampler = run.save_weights_and_get_sampling_client().result(60)
    params = tinker.SamplingParams(max_tokens=5, stop=[])
    sampler.sample(PROMPT, 3, params).result(60)
    run.save_state("kept").result(60)
    counted = {
        "training": 4 * 7,
        "sampling_prefill": 8,
        "sampling_sample": 15,
        "checkpoint": 1,
    }
    assert tokens(usage(admin)) == counted
    with service.http(key) as http:  # JSON counts as protobuf does
        plain = new_run(http)
        stub = http.post("/forward_backward", json=forward_backward(plain, 1, TOKENS)).json()
        result(http, stub["request_id"])
    report = usage(admin)
    assert tokens(report) == counted | {"training": 5 * 7}
    assert tokens(usage(admin)) == tokens(report)


def test_usage_names_its_session_and_costs_what_the_settings_say(
    client: tinker.ServiceClient, admin: tinker.AdminClient, key: str
) -> None:
    run = client.create_lora_training_client(BASE_MODEL, rank=2).result(60)
    run.forward_backward([datum(tinker)], "cross_entropy").result(60)
    base = client.create_sampling_client(base_model=BASE_MODEL).result(60)
    base.sample(PROMPT, 1, tinker.SamplingParams(max_tokens=1)).result(60)
    run.save_state("kept").result(60)
    report = usage(admin)
    by_type = {event.event_info.type: event for event in report.data}
    training = by_type["training"]
    session_id = str(client.holder.get_session_id())
    assert training.base_model == BASE_MODEL
    assert (training.session_id, training.project_id) == (session_id, "reports")
    assert training.user_id == f"tml:api_key:{key.split('-')[1]}"
    assert training.effective_rate_usd_per_million_tokens == 2.0
    assert training.estimated_cost_usd == pytest.approx(2.0 * 7 / 1e6)
    assert report.sessions[session_id].user_metadata == {"run": "7"}
    unpriced = by_type["sampling_sample"]
    assert unpriced.estimated_cost_usd is None
    assert unpriced.effective_rate_usd_per_million_tokens is None
    storage = by_type["storage"]
    assert storage.effective_rate_usd_per_gigabyte_month == 0.5


def test_current_storage_counts_the_bytes_of_what_is_listed(
    client: tinker.ServiceClient, admin: tinker.AdminClient, service: Service, key: str
) -> None:
    rest = tinker.RestClient(base_url=service.url, api_key=key)
    run = client.create_lora_training_client(BASE_MODEL, rank=2).result(60)
    run.save_state("one").result(60)
    run.save_weights_for_sampler("two").result(60)
    listed = rest.list_user_checkpoints().result(30).checkpoints
    size = sum(one.size_bytes or 0 for one in listed)
    [row] = admin.get_current_checkpoint_storage_usage().result(30).data
    assert (row.checkpoint_count, row.size_bytes, row.project_id) == (2, size, "reports")
    assert row.estimated_monthly_cost_usd == pytest.approx(0.5 * size / 1e9)
    rest.delete_checkpoint_from_tinker_path(listed[0].tinker_path).result(30)
    [row] = admin.get_current_checkpoint_storage_usage(project_id="reports").result(30).data
    assert (row.checkpoint_count, row.size_bytes) == (1, listed[1].size_bytes)
    assert admin.get_current_checkpoint_storage_usage(project_id="other").result(30).data == []


def test_the_audit_log_tells_every_change_and_who_made_it(
    client: tinker.ServiceClient, admin: tinker.AdminClient, service: Service, key: str
) -> None:
    rest = tinker.RestClient(base_url=service.url, api_key=key)
    run = client.create_lora_training_client(BASE_MODEL, rank=2).result(60)
    path = run.save_state("one").result(60).path
    run.save_state("one", overwrite=True).result(60)
    rest.publish_checkpoint_from_tinker_path(path).result(30)
    rest.unpublish_checkpoint_from_tinker_path(path).result(30)
    rest.set_checkpoint_ttl_from_tinker_path(path, 7200).result(30)
    rest.delete_checkpoint_from_tinker_path(path).result(30)
    with pytest.raises(tinker.NotFoundError):
        rest.delete_checkpoint_from_tinker_path(path).result(30)
    session_id = str(client.holder.get_session_id())
    rest.assign_session_project(session_id, "elsewhere").result(30)
    entries = admin.get_audit_log("checkpoints").result(30).entries
    assert [entry.event for entry in entries] == [
        "checkpoint_created",
        "checkpoint_created",
        "checkpoint_deleted",
        "checkpoint_published",
        "checkpoint_unpublished",
        "checkpoint_ttl_set",
        "checkpoint_deleted",
    ]
    me = f"tml:api_key:{key.split('-')[1]}"
    assert {entry.event_details["by"] for entry in entries} == {me}
    assert {entry.tinker_path for entry in entries} == {path}
    assert [entry.event_details.get("reason") for entry in entries][2::4] == [
        "overwritten",
        "deleted",
    ]
    [moved] = admin.get_audit_log("projects").result(30).entries
    assert moved.event_details["project_id"] == "elsewhere"
    [made] = admin.get_audit_log("organizations").result(30).entries
    assert (made.event, made.event_details["by"]) == ("organization_key_created", None)
    assert len(admin.get_audit_log().result(30).entries) == 9
    yesterday = datetime.datetime.now(datetime.UTC).date() - datetime.timedelta(days=1)
    assert admin.get_audit_log(day=yesterday).result(30).entries == []


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/billing/usage/events", 422),
        ("/billing/usage/events?starting_on=2026-01-01T00:00:00Z&ending_before=x", 422),
        (
            "/billing/usage/events?starting_on=2026-01-01T00:00:00&ending_before=2026-01-02T00:00:00",
            400,
        ),
        (
            "/billing/usage/events?starting_on=2026-01-01T00:30:00Z&ending_before=2026-01-02T00:00:00Z",
            400,
        ),
        (
            "/billing/usage/events?starting_on=2026-01-01T00:00:00Z&ending_before=2026-01-16T00:00:00Z",
            400,
        ),
        (
            "/billing/usage/events?starting_on=2999-01-01T00:00:00Z&ending_before=2999-01-02T00:00:00Z",
            400,
        ),
        (
            "/billing/usage/events?starting_on=0001-01-01T00:00:00%2B05:00&ending_before=0001-01-02T00:00:00Z",
            400,
        ),
        ("/audit?event_type=weather", 422),
        ("/audit?day=9999-12-31", 400),
        ("/audit?day=tomorrow", 422),
    ],
)
def test_malformed_reports_are_refused(service: Service, path: str, status: int) -> None:
    with service.http() as http:
        assert http.get(path).status_code == status
