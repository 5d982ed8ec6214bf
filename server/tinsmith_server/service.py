"""What every route works with, made once at start and handed down; and what runs behind them."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Annotated, Any

import structlog
from fastapi import Depends, Request

from tinsmith_server.accounts.allowances import Allowances
from tinsmith_server.accounts.limits import LimitBook
from tinsmith_server.accounts.oidc import Provider
from tinsmith_server.auth import Caller, KeyRing
from tinsmith_server.background.jobs import BackgroundJobs
from tinsmith_server.bus import Bus
from tinsmith_server.checkpoints.service import Checkpoints
from tinsmith_server.curves.collector import CurveCollector
from tinsmith_server.db import Database
from tinsmith_server.downloads.signing import Signer
from tinsmith_server.limits import Bounds
from tinsmith_server.openai.feed import TokenFeed
from tinsmith_server.openai.session import OpenAISessions, openai_sessions
from tinsmith_server.openai.vocabulary import Vocabularies
from tinsmith_server.owners import Owners
from tinsmith_server.sessions.liveness import Liveness
from tinsmith_server.settings import Settings
from tinsmith_server.storage import Storage
from tinsmith_server.usage.collector import UsageCollector

_log = structlog.get_logger()


@dataclass
class Service:
    settings: Settings
    db: Database
    bus: Bus
    storage: Storage
    keys: KeyRing = field(init=False)
    owners: Owners = field(init=False)
    checkpoints: Checkpoints = field(init=False)
    usage: UsageCollector = field(init=False)
    curves: CurveCollector = field(init=False)
    signer: Signer = field(init=False)
    liveness: Liveness = field(init=False)
    limits: LimitBook = field(init=False)
    allowances: Allowances = field(init=False)
    feed: TokenFeed = field(init=False)
    vocabularies: Vocabularies = field(init=False)
    openai_sessions: OpenAISessions = field(init=False)
    oidc: Provider | None = field(init=False)
    _loose: set[asyncio.Task[None]] = field(default_factory=set)
    jobs: BackgroundJobs = field(init=False)
    _chores: list[asyncio.Task[None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.keys = KeyRing(self.db, self.bus, self.settings.key_pepper)
        self.owners = Owners(self.db, self.bus)
        self.checkpoints = Checkpoints(self.db, self.bus, self.storage)
        self.usage = UsageCollector(self.db, self.bus)
        self.liveness = Liveness(
            self.db,
            self.bus,
            self.storage,
            silent_seconds=self.settings.session_silent_seconds,
            kept_seconds=self.settings.session_kept_seconds,
        )
        self.limits = LimitBook(self.db, self.bus)
        self.allowances = Allowances(
            self.db, self.bus, self.usage, self.limits, self.settings.prices
        )
        self.curves = CurveCollector(self.db, self.bus)
        self.signer = Signer(self.settings.key_pepper)
        self.feed = TokenFeed(self.bus)
        self.vocabularies = Vocabularies(self.storage)
        self.openai_sessions = openai_sessions(self.db)
        self.oidc = Provider(self.settings.oidc) if self.settings.oidc else None
        self.jobs = BackgroundJobs(self.settings.redis_url)

    @classmethod
    def create(cls, settings: Settings) -> "Service":
        return cls(
            settings,
            Database(settings.database_url),
            Bus(settings.redis_url),
            Storage(settings.store_url),
        )

    async def bounds(self, user: Caller, project_id: str, line: str) -> Bounds:
        """What a submit to a run or sampling session of the caller has to stay within."""
        account = await self.limits.of_account(user, project_id)
        return Bounds.of(user, project_id, line, self.settings.queue_caps, account)

    async def start(self) -> None:
        await self.bus.start()
        self.keys.start()
        self.owners.start()
        self.limits.start()
        self.feed.start()
        chores = {
            "settler": self.checkpoints.settle_all(),
            "tidying": self.jobs.keep_tidying(),
            "usage": self.usage.run(),
            "liveness": self.liveness.watch(),
            "curves": self.curves.run(),
        }
        self._chores = [asyncio.create_task(chore, name=name) for name, chore in chores.items()]

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """To its end, whatever becomes of whoever asked for it."""
        task = asyncio.create_task(work)
        self._loose.add(task)
        task.add_done_callback(self._loose.discard)

    async def close(self) -> None:
        await asyncio.gather(*self._loose, return_exceptions=True)
        await self.feed.close()
        await _end(self._chores)
        await self.jobs.close()
        await self.limits.close()
        await self.owners.close()
        await self.keys.close()
        await self.bus.close()
        await self.db.close()


async def _end(chores: list[asyncio.Task[None]]) -> None:
    """Asked again until it is over: a cancelled read of Redis can end as a time-out, which a chore outlives."""
    while running := [chore for chore in chores if not chore.done()]:
        for chore in running:
            chore.cancel()
        await asyncio.wait(running, timeout=0.1)


async def _service(request: Request) -> Service:
    """Not a plain function: the framework would call it in a thread, once a request."""
    service: Service = request.app.state.service
    return service


Served = Annotated[Service, Depends(_service)]
