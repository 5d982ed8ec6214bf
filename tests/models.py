"""The real models of the tests, prepared once for every run that follows."""

import os
from pathlib import Path

from tinsmith_worker.prepare import prepare


def prepared_smollm2() -> Path:
    return _prepared("smollm2-135m")


def prepared_gemma3() -> Path:
    """Under the Gemma Terms of Use: `make test-slow` says so before it comes here."""
    return _prepared("gemma3-270m")


def _prepared(name: str) -> Path:
    default = Path.home() / ".cache" / "tinsmith" / "test-models"
    folder = Path(os.environ.get("TINSMITH_TEST_MODELS", default))
    return prepare(name, folder, lambda step, progress: None, accept_license=True)
