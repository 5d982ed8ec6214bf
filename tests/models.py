"""The one real model of the tests, prepared once for every run that follows."""

import os
from pathlib import Path

from tinsmith_worker.prepare import prepare


def prepared_smollm2() -> Path:
    default = Path.home() / ".cache" / "tinsmith" / "test-models"
    folder = Path(os.environ.get("TINSMITH_TEST_MODELS", default))
    return prepare("smollm2-135m", folder, lambda step, progress: None)
