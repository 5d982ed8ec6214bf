"""What the cookbook's own tools make of a checkpoint: fetched, converted and merged as a user would.

Each form is opened without this service, by peft or transformers, and gives the sampler's logprobs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import tinker
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.cookbook.conftest import STUDENT, Cookbook

TEXT = [*b"What is 3 + 4? It is seven."]
_FETCH = "weights.download(tinker_path={path!r}, output_dir={to!r})"
_ADAPTER = (
    "weights.build_lora_adapter(base_model={base!r}, adapter_path={adapter!r}, output_path={to!r})"
)
_MERGED = (
    "weights.build_hf_model(base_model={base!r}, adapter_path={adapter!r}, output_path={to!r},"
    " dtype='float32', merge_strategy={strategy!r})"
)


@dataclass(frozen=True)
class Trained:
    """A run whose adapter covers every place, the sampler of it, and its files as fetched."""

    client: tinker.TrainingClient
    state: str
    scores: torch.Tensor
    """Of TEXT's tokens after the first, by the sampler."""
    adapter: Path


def tool(cookbook: Cookbook, call: str, **named: object) -> None:
    words = {name: str(value) for name, value in named.items()}
    cookbook.python("-c", f"from tinker_cookbook import weights; {call.format(**words)}")


@pytest.fixture(scope="module")
def trained(cookbook: Cookbook, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    with tinker.ServiceClient(
        base_url=cookbook.service.url, api_key=cookbook.service.api_key
    ) as service:
        client = service.create_lora_training_client(STUDENT, rank=8, seed=3).result(60)
        targets = {"target_tokens": TEXT[1:], "weights": [1.0] * (len(TEXT) - 1)}
        datum = tinker.Datum(
            model_input=tinker.ModelInput.from_ints(TEXT[:-1]), loss_fn_inputs=targets
        )
        for _ in range(4):
            client.forward_backward([datum], "cross_entropy").result(60)
            client.optim_step(tinker.AdamParams(learning_rate=1e-2)).result(60)
        state = client.save_state("trained").result(60).path
        sampler = client.save_weights_and_get_sampling_client().result(60)
        scores = sampler.compute_logprobs(tinker.ModelInput.from_ints(TEXT)).result(60)
        adapter = tmp_path_factory.mktemp("fetched") / "adapter"
        tool(cookbook, _FETCH, path=state, to=adapter)
        yield Trained(client, state, torch.tensor(scores[1:]), adapter)


def scored(model: PreTrainedModel | PeftModel) -> torch.Tensor:
    with torch.no_grad():
        logprobs_TV = model(torch.tensor([TEXT])).logits[0, :-1].float().log_softmax(-1)
    return logprobs_TV[range(len(TEXT) - 1), TEXT[1:]]


def base(cookbook: Cookbook) -> Path:
    return (cookbook.folder / STUDENT).resolve()


def test_a_training_checkpoint_is_fetched_encrypted_and_its_export_is_gone_after(
    cookbook: Cookbook, trained: Trained
) -> None:
    names = {file.name for file in trained.adapter.iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors"}
    rest = tinker.RestClient(base_url=cookbook.service.url, api_key=cookbook.service.api_key)
    listed = rest.list_user_checkpoints().result(30).checkpoints
    assert {one.checkpoint_type for one in listed} == {"training"}


def test_external_weights_are_fetched_as_they_are(
    cookbook: Cookbook, trained: Trained, tmp_path: Path
) -> None:
    path = trained.client.save_weights_external("plain").result(60).path
    tool(cookbook, _FETCH, path=path, to=tmp_path / "plain")
    mine, theirs = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (tmp_path / "plain", trained.adapter)
    )
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_the_converted_adapter_gives_the_samplers_logprobs_in_peft(
    cookbook: Cookbook, trained: Trained, tmp_path: Path
) -> None:
    made = tmp_path / "peft"
    tool(cookbook, _ADAPTER, base=base(cookbook), adapter=trained.adapter, to=made)
    plain = AutoModelForCausalLM.from_pretrained(base(cookbook), dtype=torch.float32)
    untrained = scored(plain)
    model = PeftModel.from_pretrained(plain, str(made)).eval()
    torch.testing.assert_close(scored(model), trained.scores, atol=1e-4, rtol=0)
    assert (untrained - trained.scores).abs().max() > 0.5


@pytest.mark.parametrize("strategy", ["shard", "full"])
def test_the_merged_model_gives_the_samplers_logprobs_by_itself(
    cookbook: Cookbook, trained: Trained, tmp_path: Path, strategy: str
) -> None:
    made = tmp_path / "merged"
    named = {"base": base(cookbook), "adapter": trained.adapter, "to": made}
    tool(cookbook, _MERGED, strategy=strategy, **named)
    model = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32).eval()
    torch.testing.assert_close(scored(model), trained.scores, atol=1e-4, rtol=0)
