"""What may be used: agreed per organization, project and key; told apart by what passes and what does not."""

import asyncio
from dataclasses import replace
from datetime import date, timedelta

import pytest
from fastapi import FastAPI
from tinsmith.protocol.errors import BadRequest, NotFound, PaymentRequired
from tinsmith.protocol.jobs import ModelCard
from tinsmith_server.accounts.caller import SignedIn
from tinsmith_server.accounts.limits import LimitValues, Subject, set_limits
from tinsmith_server.db import Checkpoint, Session, TrainingRun, Usage, now
from tinsmith_server.limits import Limits
from tinsmith_server.settings import Settings
from tinsmith_server.usage.prices import Prices
from tinsmith_server.usage.summary import added_up, as_csv, usage_rows
from tinsmith_worker.queue import Queue

from tests.console.conftest import running
from tests.console.test_keys import client, make, member

CARD = ModelCard(name="tiny", family="llama", vocab_size=8, max_context_length=8, max_lora_rank=8)


async def agree(app: FastAPI, by: SignedIn, subject: Subject, name: str, **values: object) -> None:
    async with app.state.service.db.begin() as sql:
        await set_limits(sql, by, subject, name, LimitValues(**values))  # type: ignore[arg-type]
    await app.state.service.limits.changed(by.organization_id)


async def use(app: FastAPI, by: SignedIn, key_id: str, tokens: int, hours_ago: int = 0) -> str:
    """Trained tokens of a session in the project `red`."""
    session = Session(
        id=f"sess-{key_id}-{hours_ago}",
        organization_id=by.organization_id,
        project_id="red",
        sdk_version="0",
        key_id=key_id,
    )
    hour = (now() - timedelta(hours=hours_ago)).replace(minute=0, second=0, microsecond=0)
    async with app.state.service.db.begin() as sql:
        sql.add(session)
        await sql.flush()
        sql.add(
            Usage(
                organization_id=by.organization_id,
                hour=hour,
                session_id=session.id,
                base_model="tiny",
                kind="training",
                tokens=tokens,
            )
        )
    return session.id


def test_the_queue_is_told_what_was_agreed_at_any_process(settings: Settings) -> None:
    async def flow() -> None:
        async with running(settings) as here, running(settings) as there:
            ada = await member(here)
            row, text = await make(here, ada)
            caller = await here.state.service.keys.caller(text)
            asked = there.state.service.limits
            assert (await asked.of_account(caller, "red")).key == Limits()
            await agree(here, ada, Subject.KEY, row.id, requests_per_second=0.5, live_runs=2)
            await agree(here, ada, Subject.PROJECT, "red", tokens_per_minute=7)
            await agree(here, ada, Subject.PROJECT, "blue", tokens_per_minute=8)
            mine = {"concurrent_samples": 3, "stored_bytes": 5}
            await agree(here, ada, Subject.ORGANIZATION, ada.organization_id, **mine)
            async with asyncio.timeout(1):
                while (found := await asked.of_account(caller, "red")).organization == Limits():
                    await asyncio.sleep(0)
            assert found.key == Limits(requests_per_second=0.5, live_runs=2)
            assert found.project == Limits(tokens_per_minute=7)
            assert found.organization == Limits(concurrent_samples=3)

    asyncio.run(flow())


@pytest.mark.parametrize("subject", list(Subject))
def test_a_spent_month_is_402_and_a_raised_one_goes_on(
    settings: Settings, subject: Subject
) -> None:
    priced = replace(settings, prices=Prices(training=2.0))  # US$ a million tokens

    async def flow() -> None:
        Queue(settings.redis_url, "announcer").announce([CARD])
        async with running(priced) as app:
            ada = await member(app)
            row, text = await make(app, ada)
            names = {"key": row.id, "project": "red", "organization": ada.organization_id}
            session = await use(app, ada, row.id, tokens=500_000)  # costs 1 US$
            body = {"session_id": session, "base_model": "tiny", "lora_config": {"rank": 2}}
            async with client(app, text) as http:
                agreed = (
                    ({"monthly_budget_usd": 1.0}, 402),
                    ({"monthly_budget_usd": 1.01}, 200),
                    ({"monthly_tokens": 500_000}, 402),
                    ({"monthly_tokens": 500_001}, 200),
                    ({}, 200),
                )
                for number, (values, status) in enumerate(agreed):
                    await agree(app, ada, subject, names[subject], **values)
                    answer = await http.post("/create_model", json=body | {"model_seq_id": number})
                    assert answer.status_code == status, (values, answer.text)
                    if status == 402:
                        assert next(iter(values)) in answer.json()["detail"]

    asyncio.run(flow())


def test_a_spent_month_fails_what_counts_and_lets_the_work_be_saved(settings: Settings) -> None:
    async def flow() -> None:
        Queue(settings.redis_url, "announcer").announce([CARD])
        async with running(replace(settings, poll_seconds=0.05)) as app:
            ada = await member(app)
            row, text = await make(app, ada)
            session = await use(app, ada, row.id, tokens=10)
            body = {"session_id": session, "model_seq_id": 0, "base_model": "tiny"}
            async with client(app, text) as http:
                made = await http.post("/create_model", json=body | {"lora_config": {"rank": 2}})
                run = made.json()["model_id"]
                await agree(app, ada, Subject.KEY, row.id, monthly_tokens=10)
                given = {"data": [], "loss_fn": "cross_entropy"}
                op = {"model_id": run, "seq_id": 1, "forward_backward_input": given}
                asked = (await http.post("/forward_backward", json=op)).json()
                failed = await http.post(
                    "/retrieve_future", json={"request_id": asked["request_id"]}
                )
                assert failed.json()["category"] == "user"
                assert "monthly_tokens" in failed.json()["error"]
                step = {"model_id": run, "seq_id": 2, "adam_params": {}}
                saved = {"model_id": run, "seq_id": 3, "path": "kept"}
                for path, op in (("/optim_step", step), ("/save_weights", saved)):
                    asked = (await http.post(path, json=op)).json()
                    pending = await http.post(
                        "/retrieve_future", json={"request_id": asked["request_id"]}
                    )
                    assert pending.status_code == 408  # in line: there is no worker here

    asyncio.run(flow())


def test_what_is_stored_is_counted_and_freed_by_deleting(settings: Settings) -> None:
    async def flow() -> None:
        async with running(settings) as app:
            ada, service = await member(app), app.state.service
            row, text = await make(app, ada)
            session = await use(app, ada, row.id, tokens=1)
            caller = await service.keys.caller(text)
            async with service.db.begin() as sql:
                lora = {"lora_rank": 2, "train_attn": True, "train_mlp": True}
                org = {"organization_id": ada.organization_id}
                run = TrainingRun(
                    id=f"{session}:train:0", session_id=session, base_model="tiny",
                    train_unembed=True, **lora, **org,
                )  # fmt: skip
                sql.add(run)
                await sql.flush()
                kept = Checkpoint(
                    id="c", run_id=run.id, request_id="r", kind="weights", name="a",
                    ready=True, size_bytes=1000, **org,
                )  # fmt: skip
                sql.add(kept)
            for allowed in (1001, 1000):
                await agree(app, ada, Subject.KEY, row.id, stored_bytes=allowed)
                if allowed > 1000:
                    await service.allowances.check_stored(caller, "red")
            with pytest.raises(BadRequest, match="stored_bytes"):
                await service.allowances.check_stored(caller, "red")
            [standing] = await service.allowances.standings(ada.organization_id)
            assert (standing.limit, standing.used, standing.share) == ("stored_bytes", 1000, 1.0)
            async with service.db.begin() as sql:
                (await sql.get_one(Checkpoint, "c")).deleted_at = now()
            await service.allowances.check_stored(caller, "red")

    asyncio.run(flow())


def test_four_fifths_are_told_once(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    async def flow() -> None:
        async with running(settings) as app:
            ada, service = await member(app), app.state.service
            row, text = await make(app, ada)
            await use(app, ada, row.id, tokens=79)
            caller = await service.keys.caller(text)
            for allowed, told in ((100, 0), (98, 1), (97, 1)):  # 79 %, 81 %, still told
                await agree(app, ada, Subject.KEY, row.id, monthly_tokens=allowed)
                await service.allowances.check_month(caller, "red")
                lines = capsys.readouterr().err.count("limit_nearly_reached")
                assert lines == (1 if told and allowed == 98 else 0)
            await agree(app, ada, Subject.KEY, row.id, monthly_tokens=79)
            with pytest.raises(PaymentRequired):
                await service.allowances.check_month(caller, "red")

    asyncio.run(flow())


def test_usage_is_added_up_as_the_api_reports_it(settings: Settings) -> None:
    priced = replace(settings, prices=Prices(training=2.0))

    async def flow() -> None:
        async with running(priced) as app:
            ada, service = await member(app), app.state.service
            row, text = await make(app, ada)
            other, _ = await make(app, ada)
            await use(app, ada, row.id, tokens=1_000_000)
            await use(app, ada, other.id, tokens=500_000, hours_ago=1)
            begin, end = date.today() - timedelta(days=2), date.today() + timedelta(days=2)
            async with service.db.begin() as sql:
                rows = await usage_rows(sql, ada.organization_id, begin, end, priced.prices)
            assert added_up(rows, "key_id") == {row.id: (1_000_000, 2.0), other.id: (500_000, 1.0)}
            assert added_up(rows, "project_id") == {"red": (1_500_000, 3.0)}
            assert added_up(rows, "base_model") == {"tiny": (1_500_000, 3.0)}
            async with client(app, text) as http:
                hour = now().replace(minute=0, second=0, microsecond=0)
                window = {
                    "starting_on": (hour - timedelta(hours=5)).isoformat(),
                    "ending_before": (hour + timedelta(hours=1)).isoformat(),
                }
                report = (await http.get("/billing/usage/events", params=window)).json()
            reported = [one["estimated_cost_usd"] for one in report["data"]]
            assert sum(reported) == sum(one.cost_usd or 0 for one in rows) == 3.0
            lines = as_csv(rows).splitlines()
            assert lines[0] == "day,base_model,project_id,key_id,kind,tokens,cost_usd"
            assert len(lines) == 1 + len(rows)

    asyncio.run(flow())


def test_a_name_in_a_csv_is_no_formula() -> None:
    from tinsmith_server.usage.summary import UsageRow

    row = UsageRow(date(2026, 1, 2), "=cmd|x", "p", "k", "training", 3, None)
    assert as_csv([row]).splitlines()[1] == "2026-01-02,'=cmd|x,p,k,training,3,"


def test_limits_of_others_and_impossible_ones_are_refused(settings: Settings) -> None:
    async def flow() -> None:
        async with running(settings) as app:
            ada = await member(app)
            for subject, name in ((Subject.KEY, "nobody's"), (Subject.ORGANIZATION, "org-other")):
                with pytest.raises(NotFound):
                    await agree(app, ada, subject, name, live_runs=1)
            with pytest.raises(BadRequest, match="live_runs"):
                await agree(app, ada, Subject.PROJECT, "red", live_runs=-1)

    asyncio.run(flow())
