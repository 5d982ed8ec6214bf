"""The official SDK and our own client ask the same service the same: the answers are equal."""

import datetime
import urllib.request
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import tinker
import tinsmith

from tests.contract.conftest import BASE_MODEL, Service
from tests.contract.test_clients import train

CLIENTS = (tinker, tinsmith)


@pytest.fixture(scope="module")
def key(service: Service) -> str:
    return service.new_key("twins")


@pytest.fixture(scope="module")
def run(service: Service, key: str) -> Iterator[Any]:
    """One run of a session in the project `twins`, with a checkpoint of each kind."""
    with tinsmith.ServiceClient(
        base_url=service.url,
        api_key=key,
        project_id="twins",
        display_name="Both of them",
        user_metadata={"k": "v"},
    ) as client:
        run = client.create_lora_training_client(BASE_MODEL, rank=2, seed=1).result(60)
        train(tinsmith, run, 1)
        run.save_state("state", user_metadata={"a": "b"}).result(60)
        run.save_weights_for_sampler("sampler").result(60)
        run.save_weights_external("away").result(60)
        client.create_sampling_client(base_model=BASE_MODEL).result(60)
        yield run


@pytest.fixture(scope="module", params=CLIENTS, ids=["sdk", "tinsmith"])
def rest(request: pytest.FixtureRequest, service: Service, key: str) -> Any:
    return request.param.RestClient(base_url=service.url, api_key=key)


def session_of(run: Any) -> str:
    return str(run.model_id).partition(":")[0]


def plain(answer: Any) -> Any:
    """Either client's answer as dicts, lists, numbers and times."""
    if isinstance(answer, msgspec.Struct):
        return msgspec.to_builtins(answer, builtin_types=(datetime.datetime,))
    return answer.model_dump() if hasattr(answer, "model_dump") else answer


def both(service: Service, key: str, method: str, *given: Any, **more: Any) -> tuple[Any, Any]:
    found = []
    for library in CLIENTS:
        rest = library.RestClient(base_url=service.url, api_key=key)
        found.append(plain(getattr(rest, method)(*given, **more).result(30)))
    return found[0], found[1]


HOUR = datetime.datetime.now(datetime.UTC).replace(minute=0, second=0, microsecond=0)
WINDOW = (HOUR - datetime.timedelta(hours=1), HOUR + datetime.timedelta(hours=1))


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("get_training_run", ["{run}", "accessible"]),
        ("get_training_run_by_tinker_path", ["tinker://{run}/weights/state"]),
        ("list_training_runs", [5, 0, "owned", "twins"]),
        ("list_checkpoints", ["{run}"]),
        ("list_user_checkpoints", [2, 1]),
        ("get_weights_info_by_tinker_path", ["tinker://{run}/weights/state"]),
        ("list_sessions", [20, 0, "accessible"]),
        ("get_session", ["{session}"]),
        ("get_sampler", ["{session}:sample:0"]),
        ("whoami", []),
        ("get_audit_log", ["checkpoints", HOUR.date()]),
        ("get_current_checkpoint_storage_usage", ["twins"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_lookup_is_the_same(
    service: Service, key: str, run: Any, method: str, given: list[Any]
) -> None:
    names = {"run": run.model_id, "session": session_of(run)}
    given = [one.format(**names) if isinstance(one, str) else one for one in given]
    official, ours = both(service, key, method, *given)
    assert official
    assert ours == official


def test_a_bill_is_the_same(service: Service, key: str, run: Any) -> None:
    answers = both(service, key, "get_billing_usage", *WINDOW)
    for answer in answers:
        for event in answer["data"]:
            if event["event_info"]["type"] == "storage":  # it grows while one looks
                assert event["event_info"].pop("gigabyte_hours") > 0
                assert event.pop("estimated_cost_usd") > 0
    assert {event["event_info"]["type"] for event in answers[0]["data"]} >= {
        "training",
        "checkpoint",
        "storage",
    }
    assert answers[1] == answers[0]


def test_every_public_method_of_the_rest_clients_is_there() -> None:
    for name in ("RestClient", "AdminClient"):
        official, ours = getattr(tinker, name), getattr(tinsmith, name)
        methods = {one for one in vars(official) if not one.startswith("_")} - {"get_telemetry"}
        assert methods <= set(dir(ours)), methods - set(dir(ours))


def test_a_search_is_the_same(service: Service, key: str, run: Any) -> None:
    answers = []
    for library in CLIENTS:
        types = library.types
        asked = types.SessionSearchRequest(
            display_name="both THEM",
            user_metadata={"k": "v"},
            owner=types.AccessibleSearchOwner(),
            statuses=[types.ActiveSessionStatusQuery()],
            limit=1,
        )
        rest = library.RestClient(base_url=service.url, api_key=key)
        answers.append(plain(rest.search_sessions(asked).result(30)))
    assert [one["session_id"] for one in answers[0]["sessions"]] == [session_of(run)]
    assert answers[1] == answers[0]


def test_links_lead_to_the_same_files(service: Service, key: str, run: Any) -> None:
    path = f"tinker://{run.model_id}/external_weights/away"
    answers = both(service, key, "get_external_weights_urls", path)
    files = []
    for answer in answers:
        assert answer["expires"] > datetime.datetime.now(datetime.UTC)
        links = sorted(answer["urls"].items())
        files.append(
            [(name, urllib.request.urlopen(link, timeout=30).read()) for name, link in links]
        )
    assert [name for name, _ in files[0]] == ["adapter_config.json", "adapter_model.safetensors"]
    assert files[1] == files[0]


def test_a_checkpoint_is_published_aged_copied_and_traced(rest: Any, run: Any) -> None:
    path = f"tinker://{run.model_id}/weights/state"

    def listed() -> Any:
        found = rest.list_checkpoints(run.model_id).result(30).checkpoints
        return next(one for one in found if one.tinker_path == path)

    rest.publish_checkpoint_from_tinker_path(path).result(30)
    assert listed().public
    rest.unpublish_checkpoint_from_tinker_path(path).result(30)
    assert not listed().public
    rest.set_checkpoint_ttl_from_tinker_path(path, 7200).result(30)
    assert listed().expires_at > datetime.datetime.now(datetime.UTC)
    rest.set_checkpoint_ttl_from_tinker_path(path, None).result(30)
    assert listed().expires_at is None
    copy = rest.copy_weights(path, "twins-kept").result(30)
    assert rest.get_weights_info_by_tinker_path(copy).result(30).lora_rank == 2
    assert rest.get_training_run_by_tinker_path(copy).result(30).training_run_id != run.model_id
    rest.delete_checkpoint_from_tinker_path(copy).result(30)
    url = rest.export_session_trace(session_of(run)).result(30)
    assert b"forward_backward" in urllib.request.urlopen(url, timeout=30).read()


def test_a_session_moves(rest: Any, run: Any) -> None:
    for project_id in ("elsewhere", "twins"):
        rest.assign_session_project(session_of(run), project_id).result(30)
        runs = rest.list_training_runs(project_id=project_id).result(30).training_runs
        assert [one.training_run_id for one in runs] == [run.model_id]


@pytest.mark.parametrize("library", CLIENTS, ids=["sdk", "tinsmith"])
def test_mistakes_are_told_alike(service: Service, key: str, run: Any, library: Any) -> None:
    rest = library.RestClient(base_url=service.url, api_key=key)
    path = f"tinker://{run.model_id}/weights/state"
    for wrong in ("nothing", "tinker://a", "tinker://a/b/c/d"):
        with pytest.raises(ValueError, match="tinker"):
            rest.publish_checkpoint_from_tinker_path(wrong)
    with pytest.raises(ValueError, match="TINKER_PROJECT_ID"):
        rest.copy_weights(path)
    refused = rest.copy_weights(path, "twins", weights_access_token="secret")
    with pytest.raises(library.BadRequestError, match="weights_access_token"):
        refused.result(30)
    with pytest.raises(library.BadRequestError, match="ttl_seconds"):
        rest.set_checkpoint_ttl_from_tinker_path(path, 5).result(30)
    stranger = library.RestClient(base_url=service.url, api_key=service.other_key)
    for asked in (
        stranger.get_session(session_of(run)),
        stranger.export_session_trace(session_of(run)),
        stranger.publish_checkpoint_from_tinker_path(path),
        stranger.copy_weights(path, "twins"),
    ):
        with pytest.raises(library.NotFoundError):
            asked.result(30)
