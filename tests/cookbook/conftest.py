"""The service, and a folder in which the cookbook's names resolve offline."""

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.contract.conftest import Service, running_service
from tests.cookbook.data import write_data
from tests.cookbook.environments import OLDER, ROOT, VERSION, package_of, python_of
from tests.cookbook.models import make_model
from tests.cookbook.page import FILE, Figures

STUDENT = "Qwen/Qwen3-4B-Instruct-2507"
TEACHER = "Qwen/Qwen3-30B-A3B-Instruct-2507"
PROMPTED = "Qwen/Qwen3.6-35B-A3B"
"""Whom prompt_distillation asks: the recipe takes no other name."""
_LIMIT_SECONDS = 400


@dataclass(frozen=True)
class Run:
    """A recipe's metrics.jsonl, a row a step."""

    name: str
    rows: list[dict[str, float]]
    figures: Figures

    def ends(self, metric: str, count: int = 2) -> tuple[float, float]:
        """The mean of the first values, and of the last ones."""
        values = [row[metric] for row in self.rows if metric in row]
        found = sorted({name for row in self.rows for name in row})
        assert len(values) >= 2 * count, f"{metric} {len(values)} times among {found}"
        first, last = sum(values[:count]) / count, sum(values[-count:]) / count
        self.figures.note(self.name, metric, f"{first:.3f} to {last:.3f} ({len(values)} values)")
        return first, last


@dataclass(frozen=True)
class Cookbook:
    service: Service
    folder: Path
    """Where recipes run."""
    figures: Figures
    version: str = VERSION

    def python(self, *arguments: str) -> str:
        """What it printed, stdout and stderr; it must end well."""
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "TINKER_BASE_URL": self.service.url,
            "TINKER_API_KEY": self.service.api_key,
            "TINKER_TELEMETRY": "0",
            "TINKER_COOKBOOK_RUNS_DIR": str(self.folder / "runs"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        done = subprocess.run(
            [python_of(self.version), *arguments],
            env=environment,
            cwd=self.folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_LIMIT_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-6000:]
        return done.stdout

    def recipe(self, module: str, log: str, **options: object) -> Run:
        """Runs it as a user would; the log folder's name is the run's."""
        words = [f"{name}={value}" for name, value in options.items()]
        log = log if self.version == VERSION else f"{log}-{self.version}"
        module, path = f"tinker_cookbook.recipes.{module}", self.folder / "logs" / log
        self.python("-m", module, f"log_path={path}", *words)
        lines = (path / "metrics.jsonl").read_text().splitlines()
        return Run(log, [json.loads(line) for line in lines], self.figures)


@pytest.fixture(scope="session")
def cookbook(tmp_path_factory: pytest.TempPathFactory, valkey_url: str) -> Iterator[Cookbook]:
    python_of(VERSION)
    folder, models = tmp_path_factory.mktemp("cookbook"), ROOT / "models"
    served = {
        STUDENT: make_model(models / "student", 0, "0123456789"),
        TEACHER: make_model(models / "teacher", 1, "77789"),
    }
    served[PROMPTED] = served[TEACHER]
    for name, made in served.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(made)
    write_data(folder, package_of(VERSION))
    data_dir = tmp_path_factory.mktemp("service")
    settings = {"TINSMITH_FWDBWD_MAX_CHUNK_LEN": "128", "TINSMITH_MAX_SAMPLING_SLOTS": "64"}
    with running_service(data_dir, valkey_url, served, TINSMITH_MODEL_ALIASES="", **settings) as up:
        yield Cookbook(up, folder, Figures.read(FILE))


@pytest.fixture(params=[VERSION, OLDER])
def each_cookbook(request: pytest.FixtureRequest, cookbook: Cookbook) -> Cookbook:
    """The version that every recipe runs with, then an older one."""
    return replace(cookbook, version=request.param)
