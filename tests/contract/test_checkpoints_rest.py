"""Runs and checkpoints over REST, as the official SDK asks for them; and what others may see."""

import asyncio
import datetime
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import tinker
from sqlalchemy import update
from tinsmith_server.checkpoints.service import Checkpoints
from tinsmith_server.db import Checkpoint, Database, now
from tinsmith_server.storage import Storage

from tests.contract.conftest import BASE_MODEL, Service


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[tinker.ServiceClient]:
    with tinker.ServiceClient(base_url=service.url, api_key=service.api_key) as client:
        yield client


@pytest.fixture(scope="module")
def rest(service: Service) -> tinker.RestClient:
    return tinker.RestClient(base_url=service.url, api_key=service.api_key)


@pytest.fixture(scope="module")
def other_key(service: Service) -> str:
    """Not the common stranger's: this one makes runs of its own."""
    return service.new_key("neighbours")


@pytest.fixture(scope="module")
def other(service: Service, other_key: str) -> tinker.RestClient:
    return tinker.RestClient(base_url=service.url, api_key=other_key)


def new_run(client: tinker.ServiceClient) -> tinker.TrainingClient:
    return client.create_lora_training_client(BASE_MODEL, rank=2, seed=1).result(60)


def test_pages_of_runs_follow_one_another(
    client: tinker.ServiceClient, rest: tinker.RestClient
) -> None:
    made = [new_run(client).model_id for _ in range(3)]
    pages = [rest.list_training_runs(limit=1, offset=offset).result(30) for offset in range(3)]
    assert [page.training_runs[0].training_run_id for page in pages] == made[::-1]
    assert [page.cursor.offset for page in pages] == [0, 1, 2]
    total = pages[0].cursor.total_count
    assert len(rest.list_training_runs(limit=1000).result(30).training_runs) == total
    beyond = rest.list_training_runs(limit=1, offset=total).result(30)
    assert beyond.training_runs == []


def test_a_run_names_its_newest_checkpoints(
    client: tinker.ServiceClient, rest: tinker.RestClient
) -> None:
    run = new_run(client)
    for name in ("one", "two"):
        run.save_state(name, user_metadata={"name": name}).result(60)
    run.save_weights_for_sampler("three").result(60)
    run.save_weights_and_get_sampling_client().result(60)  # unnamed: nowhere listed
    found = rest.get_training_run_by_tinker_path(f"tinker://{run.model_id}/weights/one").result(30)
    assert found.last_checkpoint is not None
    assert found.last_sampler_checkpoint is not None
    assert found.last_checkpoint.checkpoint_id == "weights/two"
    assert found.last_checkpoint.user_metadata == {"name": "two"}
    assert found.last_sampler_checkpoint.checkpoint_id == "sampler_weights/three"
    listed = rest.list_training_runs(limit=1).result(30).training_runs[0]
    assert listed == found
    pages = [rest.list_user_checkpoints(limit=2, offset=offset).result(30) for offset in (0, 2)]
    names = [one.checkpoint_id for page in pages for one in page.checkpoints]
    assert names[:3] == ["sampler_weights/three", "weights/two", "weights/one"]
    assert pages[0].cursor is not None
    assert pages[0].cursor.total_count >= 3


def test_published_weights_are_read_by_path_and_changed_by_their_owner_only(
    client: tinker.ServiceClient,
    rest: tinker.RestClient,
    other: tinker.RestClient,
    other_key: str,
    service: Service,
) -> None:
    run = new_run(client)
    path = run.save_state("shared", user_metadata={"k": "v"}).result(60).path
    run.save_state("private").result(60)
    with pytest.raises(tinker.NotFoundError):
        other.get_weights_info_by_tinker_path(path).result(30)
    with pytest.raises(tinker.NotFoundError):
        other.publish_checkpoint_from_tinker_path(path).result(30)
    rest.publish_checkpoint_from_tinker_path(path).result(30)
    with pytest.raises(tinker.BadRequestError, match="already published"):
        rest.publish_checkpoint_from_tinker_path(path).result(30)

    assert other.get_weights_info_by_tinker_path(path).result(30).lora_rank == 2
    seen = other.list_checkpoints(run.model_id).result(30).checkpoints
    assert [(one.checkpoint_id, one.public) for one in seen] == [("weights/shared", True)]
    with pytest.raises(tinker.NotFoundError):
        other.get_training_run(run.model_id).result(30)
    found = other.get_training_run(run.model_id, access_scope="accessible").result(30)
    assert found.last_checkpoint is not None
    assert found.last_checkpoint.checkpoint_id == "weights/shared"
    with tinker.ServiceClient(base_url=service.url, api_key=other_key) as stranger:
        sampler = stranger.create_sampling_client(model_path=path).result(60)
        assert len(sampler.compute_logprobs(tinker.ModelInput.from_ints([5, 6])).result(60)) == 2
        copy = stranger.create_training_client_from_state(path).result(60)
        assert copy.get_info().lora_rank == 2
        for change in (
            other.delete_checkpoint_from_tinker_path(path),
            other.unpublish_checkpoint_from_tinker_path(path),
            other.set_checkpoint_ttl_from_tinker_path(path, 3600),
        ):
            with pytest.raises(tinker.NotFoundError):
                change.result(30)
    rest.unpublish_checkpoint_from_tinker_path(path).result(30)
    with pytest.raises(tinker.BadRequestError, match="not published"):
        rest.unpublish_checkpoint_from_tinker_path(path).result(30)
    with pytest.raises(tinker.NotFoundError):
        other.get_weights_info_by_tinker_path(path).result(30)
    with pytest.raises(tinker.NotFoundError):
        other.list_checkpoints(run.model_id).result(30)


def test_ttl_is_set_cleared_and_bounded(
    client: tinker.ServiceClient, rest: tinker.RestClient
) -> None:
    run = new_run(client)
    path = run.save_state("aging", ttl_seconds=7200).result(60).path

    def expires() -> datetime.datetime | None:
        return rest.list_checkpoints(run.model_id).result(30).checkpoints[0].expires_at

    saved = expires()
    assert saved is not None
    rest.set_checkpoint_ttl_from_tinker_path(path, 86400).result(30)
    later = expires()
    assert later is not None
    assert datetime.timedelta(hours=21) < later - saved < datetime.timedelta(hours=23)
    rest.set_checkpoint_ttl_from_tinker_path(path, None).result(30)
    assert expires() is None
    with pytest.raises(tinker.BadRequestError, match="ttl_seconds: 5 is not from"):
        rest.set_checkpoint_ttl_from_tinker_path(path, 5).result(30)


def test_a_name_is_free_again_after_its_deletion(
    client: tinker.ServiceClient, rest: tinker.RestClient
) -> None:
    run = new_run(client)
    path = run.save_state("again").result(60).path
    rest.delete_checkpoint(run.model_id, "weights/again").result(30)
    with pytest.raises(tinker.NotFoundError):
        rest.delete_checkpoint(run.model_id, "weights/again").result(30)
    assert rest.list_checkpoints(run.model_id).result(30).checkpoints == []
    assert run.save_state("again").result(60).path == path
    assert len(rest.list_checkpoints(run.model_id).result(30).checkpoints) == 1


def test_what_has_expired_is_gone_with_its_files(
    client: tinker.ServiceClient, rest: tinker.RestClient, service: Service
) -> None:
    run = new_run(client)
    run.save_state("old", ttl_seconds=3600).result(60)
    run.save_state("young", ttl_seconds=3600).result(60)

    async def let_time_pass() -> str:
        db = Database(f"sqlite+aiosqlite:///{service.data_dir / 'tinsmith.db'}")
        row = update(Checkpoint).where(Checkpoint.run_id == run.model_id, Checkpoint.name == "old")
        async with db.begin() as sql:
            made = await sql.scalar(row.values(expires_at=now()).returning(Checkpoint.id))
        assert _stored(service, str(made))
        storage = Storage(str(service.data_dir / "store"))
        await Checkpoints(db, None, storage).delete_expired()  # type: ignore[arg-type]
        await db.close()
        return str(made)

    gone = asyncio.run(let_time_pass())
    assert not _stored(service, gone)
    left = rest.list_checkpoints(run.model_id).result(30).checkpoints
    assert [one.checkpoint_id for one in left] == ["weights/young"]
    run.save_state("old").result(60)


def _stored(service: Service, checkpoint_id: str) -> list[Path]:
    return list((service.data_dir / "store" / "checkpoints" / checkpoint_id).glob("*"))


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/training_runs?limit=0", None, 422),
        ("GET", "/training_runs?access_scope=everything", None, 422),
        ("GET", "/training_runs/nothing", None, 404),
        ("GET", "/training_runs/nothing/checkpoints", None, 404),
        ("POST", "/training_runs/s:train:0/checkpoints/weights/x/publish", None, 404),
        ("POST", "/training_runs/s:train:0/checkpoints/heavy/x/publish", None, 400),
        ("PUT", "/training_runs/s:train:0/checkpoints/weights/x/ttl", {}, 422),
        ("PUT", "/training_runs/s:train:0/checkpoints/weights/x/ttl", {"ttl_seconds": "a"}, 422),
        ("POST", "/weights_info", {"tinker_path": "tinker://a"}, 400),
        ("GET", "/checkpoints?offset=-1", None, 422),
    ],
)
def test_mistakes_have_final_statuses(
    service: Service, method: str, path: str, body: dict[str, object] | None, status: int
) -> None:
    with service.http() as http:
        answer: httpx.Response = http.request(method, path, json=body)
    assert answer.status_code == status
    assert int(answer.headers["content-length"]) > 0
    assert answer.json()["detail"]
