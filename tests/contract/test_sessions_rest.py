"""Sessions as the official SDK lists, finds, moves and ends them."""

import datetime
from collections.abc import Iterator

import pytest
import tinker
from tinker.types import (
    ActiveSessionStatusQuery,
    ClientFinishedSessionStatusQuery,
    FailedSessionStatusQuery,
    SessionSearchRequest,
    UserSearchOwner,
)

from tests.contract.conftest import BASE_MODEL, Service


@pytest.fixture(scope="module")
def rest(service: Service) -> tinker.RestClient:
    return tinker.RestClient(base_url=service.url, api_key=service.api_key)


@pytest.fixture
def client(service: Service) -> Iterator[tinker.ServiceClient]:
    with new_client(service, display_name="Evening Run of April") as client:
        yield client


def new_client(service: Service, **more: object) -> tinker.ServiceClient:
    return tinker.ServiceClient(base_url=service.url, api_key=service.api_key, **more)


def session_of(client: tinker.ServiceClient) -> str:
    return str(client.holder.get_session_id())


def test_a_session_lists_its_runs_and_samplers(
    service: Service, rest: tinker.RestClient, client: tinker.ServiceClient
) -> None:
    run = client.create_lora_training_client(BASE_MODEL, rank=2).result(60)
    base = client.create_sampling_client(base_model=BASE_MODEL).result(60)
    run.save_weights_and_get_sampling_client().result(60)
    session_id = session_of(client)
    found = rest.get_session(session_id).result(30)
    assert found.training_run_ids == [run.model_id]
    assert len(found.sampler_ids) == 2
    assert found.display_name == "Evening Run of April"
    sampler = rest.get_sampler(found.sampler_ids[0]).result(30)
    assert (sampler.base_model, sampler.model_path) == (BASE_MODEL, None)
    assert base.get_base_model() == BASE_MODEL
    assert rest.list_sessions(limit=1).result(30).sessions == [session_id]
    assert session_id not in rest.list_sessions(limit=1, offset=1).result(30).sessions
    other = tinker.RestClient(base_url=service.url, api_key=service.other_key)
    assert session_id not in other.list_sessions(limit=1000).result(30).sessions
    for asked in (other.get_session(session_id), other.get_sampler(found.sampler_ids[0])):
        with pytest.raises(tinker.NotFoundError):
            asked.result(30)


def test_a_session_moves_between_projects_and_takes_its_runs_along(
    service: Service, rest: tinker.RestClient
) -> None:
    with new_client(service, project_id="spring") as client:
        run = client.create_lora_training_client(BASE_MODEL, rank=2).result(60)
        assert [one.training_run_id for one in _runs(rest, "spring")] == [run.model_id]
        session_id = session_of(client)
        rest.assign_session_project(session_id, "summer").result(30)
    assert _runs(rest, "spring") == []
    assert [one.training_run_id for one in _runs(rest, "summer")] == [run.model_id]
    with pytest.raises(tinker.BadRequestError, match="project_id"):
        rest.assign_session_project(session_id, "no such name").result(30)
    with pytest.raises(tinker.NotFoundError):
        rest.assign_session_project("sess-none", "summer").result(30)


def _runs(rest: tinker.RestClient, project_id: str) -> list[tinker.types.TrainingRun]:
    return rest.list_training_runs(project_id=project_id).result(30).training_runs


def test_search_by_name_metadata_project_owner_and_id(
    service: Service, rest: tinker.RestClient
) -> None:
    made = {}
    for number, name in enumerate(("Grey Heron", "grey goose", "100% Heron")):
        metadata = {"bird": name.split()[1], "half": number / 2}
        client = new_client(service, display_name=name, project_id="birds", user_metadata=metadata)
        made[name] = session_of(client)
        client.close("success").result(30)

    def names(**asked: object) -> list[str | None]:
        found = rest.search_sessions(SessionSearchRequest(**asked)).result(30)  # type: ignore[arg-type]
        return [one.display_name for one in found.sessions]

    assert names(project_ids=["birds"]) == ["100% Heron", "grey goose", "Grey Heron"]
    assert names(display_name="HERON grey") == ["Grey Heron"]
    assert names(display_name="0%") == ["100% Heron"]
    assert names(user_metadata={"bird": "Heron", "half": "0.0"}) == ["Grey Heron"]
    assert names(session_id=made["grey goose"], display_name="100%") == [
        "100% Heron",
        "grey goose",
    ]
    assert names(display_name="heron", owner=UserSearchOwner(owner_urns=["tml:user:x"])) == []
    with pytest.raises(tinker.NotFoundError, match="fish"):
        names(project_ids=["fish"])
    with pytest.raises(tinker.BadRequestError, match="quote"):
        names(user_metadata={'a"b': "c"})


def test_search_pages_with_its_cursor(service: Service, rest: tinker.RestClient) -> None:
    for _ in range(3):
        client = new_client(service, project_id="pages")
        session_of(client)
        client.close("success").result(30)
    found, cursor = [], None
    for left in (2, 1):
        asked = SessionSearchRequest(project_ids=["pages"], limit=2, cursor=cursor)
        page = rest.search_sessions(asked).result(30)
        assert len(page.sessions) == left
        found += [one.created_at for one in page.sessions]
        cursor = page.next_cursor
    assert cursor is None
    assert found == sorted(found, reverse=True)


def test_statuses_tell_how_a_session_ended(service: Service, rest: tinker.RestClient) -> None:
    ends = {"success": None, "errored": "lost power"}
    for status, detail in ends.items():
        client = new_client(service, project_id="ends", display_name=status)
        run = client.create_lora_training_client(BASE_MODEL, rank=2).result(60)
        run.save_state("kept").result(60)
        with pytest.raises(tinker.RequestFailedError):
            run.save_state("no/name").result(60)
        session_id = session_of(client)
        client.close(status, detail).result(30)  # type: ignore[arg-type]
        with service.http() as http:
            again = {"reason": {"type": "interrupted"}}  # the first reason wins
            assert http.post(f"/sessions/{session_id}/finish", json=again).is_success
    with new_client(service, project_id="ends", display_name="open") as open_client:
        session_of(open_client)

        def found(*statuses: object) -> dict[str | None, object]:
            asked = SessionSearchRequest(project_ids=["ends"], statuses=list(statuses) or None)  # type: ignore[arg-type]
            page = rest.search_sessions(asked).result(30)
            return {one.display_name: one for one in page.sessions}

        everything = found()
        assert set(everything) == {"success", "errored", "open"}
        assert set(found(ActiveSessionStatusQuery())) == {"open"}
        assert set(found(ClientFinishedSessionStatusQuery())) == set(ends)
        only = found(ClientFinishedSessionStatusQuery(reasons=["errored"]))
        assert set(only) == {"errored"}
        assert found(FailedSessionStatusQuery()) == {}
    summary = only["errored"]
    assert isinstance(summary, tinker.types.SessionSummary)
    assert summary.checkpoints_count == 1
    assert (summary.checkpoint_storage_bytes or 0) > 1000
    assert summary.created_at.tzinfo is not None
    assert datetime.timedelta(0) <= datetime.datetime.now(datetime.UTC) - summary.created_at
    status = summary.status
    assert isinstance(status, tinker.types.ClientSessionFinished)
    assert (status.reason.type, status.detail) == ("errored", "lost power")


@pytest.mark.parametrize(
    "body",
    [
        {"limit": 0},
        {"limit": 201},
        {"display_name": ""},
        {"statuses": []},
        {"statuses": [{"type": "sleeping"}]},
        {"owner": {"type": "user", "owner_urns": []}},
        {"cursor": {"last_created_at": "2026-01-01T00:00:00", "last_session_id": "x"}},
    ],
)
def test_a_malformed_search_is_unprocessable(service: Service, body: dict[str, object]) -> None:
    with service.http() as http:
        assert http.post("/sessions/search", json=body).status_code == 422
        assert (
            http.post("/sessions/none/finish", json={"reason": {"type": "tired"}}).status_code
            == 422
        )


def test_a_cursor_before_the_calendar_is_refused(service: Service) -> None:
    cursor = {"last_created_at": "0001-01-01T00:00:00+05:00", "last_session_id": "x"}
    with service.http() as http:
        answer = http.post("/sessions/search", json={"cursor": cursor})
    assert answer.status_code == 400
    assert "cursor.last_created_at" in answer.json()["detail"]
