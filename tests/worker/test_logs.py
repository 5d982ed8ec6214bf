"""What a worker says: one JSON object a line, and of an accident no value of a variable."""

import json

import pytest
import structlog
from tinsmith_worker.logs import configure_logs


def test_an_accident_is_one_line_of_json_without_the_values_that_it_met(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        prompt = "my secret " + "plan"
        raise ValueError(len(prompt))

    before = structlog.get_config()
    configure_logs()
    try:
        fail()
    except ValueError as error:
        structlog.get_logger().error("op_failed", request_id="run:1", exc_info=error)
    finally:
        structlog.configure(**before)
    [line] = capsys.readouterr().err.splitlines()
    said = json.loads(line)
    assert (said["event"], said["level"], said["request_id"]) == ("op_failed", "error", "run:1")
    assert "in fail" in said["exception"]
    assert "timestamp" in said
    assert "my secret plan" not in line
