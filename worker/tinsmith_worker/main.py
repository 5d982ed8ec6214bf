"""The worker process: load the models, announce them, work until told to stop."""

import hashlib
import os
import signal
import socket
import sys
import uuid
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import FrameType

import structlog
import torch
from tinsmith.protocol.jobs import ModelCard
from tinsmith.protocol.store_layout import tokenizer_prefix

from tinsmith_worker.engine.base_model import BaseModel, ModelRefused, load
from tinsmith_worker.engine.budget import measure
from tinsmith_worker.engine.sampler import Sampler
from tinsmith_worker.lease import GONE_SHARE, Lease
from tinsmith_worker.logs import configure_logs
from tinsmith_worker.loop import Worker
from tinsmith_worker.queue import Queue
from tinsmith_worker.rest import rest
from tinsmith_worker.sampler_weights import SamplerWeights
from tinsmith_worker.samples import SamplingDesk
from tinsmith_worker.settings import Settings, SettingsError
from tinsmith_worker.store import Store
from tinsmith_worker.teachers import Teachers
from tinsmith_worker.vitals import Vitals

_log = structlog.get_logger()
_JOBS_PER_SLOT = 2  # a few wait at the worker, so that a place that falls free is filled at once
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "config.json",
)
Keep = Callable[[str, dict[str, bytes]], None]
"""Have files in a folder of the store, in time."""


def main() -> int:
    configure_logs()
    try:
        settings = Settings.from_environment()
        again = work(settings)
    except (SettingsError, ModelRefused) as error:
        sys.stderr.write(f"tinsmith work: {error}\n")
        return 2
    if again:
        os.execv(sys.executable, [sys.executable, "-m", "tinsmith_worker"])
    return 0


def work(settings: Settings) -> bool:
    """Until told to stop. True: it was drained, and is taken back."""
    if settings.torch_threads:
        torch.set_num_threads(settings.torch_threads)
    name = f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
    queue = Queue(settings.redis_url, name, GONE_SHARE * settings.lease_seconds)
    store = Store(settings.store_url)
    if wrong := store.check():
        raise SettingsError(wrong)
    models = {name: _load(settings, name, folder) for name, folder in settings.models.items()}
    desks = {served: _desk(settings, queue, store, model) for served, model in models.items()}
    teachers = Teachers(
        store,
        models,
        {served: desk.weights for served, desk in desks.items()},
        guests=settings.teachers,
        load=lambda served: _load(settings, served, settings.teachers[served]),
        idle_seconds=settings.teacher_idle_seconds,
    )
    worker = Worker(settings, queue, store, models, desks, teachers)
    signals: list[int] = []

    def stop(signum: int, _: FrameType | None) -> None:
        signals.append(signum)
        worker.stop()

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, stop)
    lease = Lease(
        settings.redis_url,
        name,
        settings.lease_seconds,
        on_error=lambda error: _log.warning("lease_not_renewed", error=error),
        vitals=Vitals(settings.device).look,
    )
    lease.start()
    queue.announce(
        [_card(settings, worker.keep, model, teachers.names) for model in models.values()]
    )
    _log.info("worker_ready", worker=name, models=sorted(models))
    worker.run_forever()
    worker.drain()
    lease.stop()
    worker.leave()
    return worker.asked_to_leave and rest(queue, lambda: bool(signals))


def _load(settings: Settings, served: str, folder: str) -> BaseModel:
    return load(
        folder,
        name=served,
        device=settings.device,
        dtype=getattr(torch, settings.dtype),
        exact=settings.exact,
    )


def _desk(settings: Settings, queue: Queue, store: Store, model: BaseModel) -> SamplingDesk:
    budget = measure(model, kv_cache_gib=settings.kv_cache_gib, shares=len(settings.models))
    model.memory_tokens = budget.memory_tokens
    _log.info(
        "model_loaded",
        model=model.name,
        engine=model.engine,
        dtype=str(model.dtype).removeprefix("torch."),
        **asdict(model.numerics),
        **asdict(budget),
    )
    sampler = Sampler(
        model,
        max_slots=settings.max_sampling_slots,
        max_pass_tokens=settings.max_pass_tokens,
        max_blocks=budget.max_blocks,
    )
    weights = SamplerWeights(
        store, model, settings.max_resident_runs, on_leave=sampler.forget, ring=queue.ring
    )
    return SamplingDesk(
        queue, model, sampler, weights, max_jobs=_JOBS_PER_SLOT * settings.max_sampling_slots
    )


def _card(settings: Settings, keep: Keep, model: BaseModel, teachers: list[str]) -> ModelCard:
    return ModelCard(
        name=model.name,
        family=model.family,
        vocab_size=model.vocab_size,
        max_context_length=model.max_context_length,
        max_lora_rank=min(settings.max_lora_rank, model.hidden_size),
        tokenizer_prefix=_share_tokenizer(keep, Path(settings.models[model.name])),
        engine=model.engine,
        dtype=str(model.dtype).removeprefix("torch."),
        exact=model.numerics.held,
        teachers=tuple(teachers),
        eos_token_ids=tuple(sorted(model.eos_token_ids)),
        tied_head=model.tied_head,
    )


def _share_tokenizer(keep: Keep, folder: Path) -> str | None:
    """Put the tokenizer's files in the store, where the API processes serve them from."""
    files = {
        name: (folder / name).read_bytes() for name in _TOKENIZER_FILES if (folder / name).is_file()
    }
    if "tokenizer.json" not in files:
        return None
    digest = hashlib.sha256(b"".join(name.encode() + files[name] for name in sorted(files)))
    prefix = tokenizer_prefix(digest.hexdigest())
    keep(prefix, files)
    return prefix
