"""What a client sees when a process dies under it: a wait, and then the right answer."""

from types import ModuleType

import pytest
import tinker as official_sdk
import tinsmith

from tests.contract.conftest import BASE_MODEL, Service
from tests.contract.test_clients import adam, datum, train


@pytest.mark.parametrize("tinker", [official_sdk, tinsmith], ids=["sdk", "tinsmith"])
@pytest.mark.parametrize("victim", ["work", "serve"])
def test_a_killed_process_changes_no_loss(
    service: Service, victim: str, tinker: ModuleType
) -> None:
    with tinker.ServiceClient(base_url=service.url, api_key=service.api_key) as client:
        twin = client.create_lora_training_client(BASE_MODEL, rank=4, seed=3).result(60)
        expected = train(tinker, twin, 6)
        run = client.create_lora_training_client(BASE_MODEL, rank=4, seed=3).result(60)
        losses = train(tinker, run, 3)
        gradient = run.forward_backward([datum(tinker), datum(tinker, [3, 5, 8])], "cross_entropy")
        gradient.result(60)
        service.processes[victim].kill()
        service.processes[victim].wait()
        service.start(victim)
        # The gradient above was promised, and is still there: it is replayed from the log.
        norm = run.optim_step(adam(tinker, 0.0)).result(90).metrics["grad_norm"]
        assert norm > 0
        assert losses == expected[:3]
        assert train(tinker, run, 1) == [expected[3]]
