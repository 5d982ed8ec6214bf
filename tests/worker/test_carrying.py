"""Weights out and in, against plain peft: merged models, and adapters of other people's making."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save, save_file
from tinsmith.protocol.errors import TinsmithError
from tinsmith.protocol.peft_config import PeftConfig
from tinsmith_worker import checkpoint_files
from tinsmith_worker.carrying.merge import merge
from tinsmith_worker.carrying.take_in import (
    adapter_of,
    pairs_of,
    shapes_of,
    take_in,
    tensors_of,
)
from tinsmith_worker.engine.adapter import Adapter
from tinsmith_worker.engine.optimizer import RunState
from tinsmith_worker.engine.values import InvalidInput
from tinsmith_worker.store import Store
from transformers import AutoModelForCausalLM

from tests.worker.tiny_models import save as save_tiny

TOKENS = torch.tensor([[5, 9, 14, 3, 22, 41, 8, 17]])


def quiet(progress: float, note: str) -> None:
    assert 0 <= progress <= 1


def trained(folder: Path, **trains: bool) -> RunState:
    """An adapter that changes what the model says."""
    adapter = Adapter.create(shapes_of(str(folder), "tiny"), rank=4, seed=1, **trains)
    generator = torch.Generator().manual_seed(2)
    for weight in adapter.parameters().values():
        weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05)
    return RunState(adapter)


def saved(store: Store, state: RunState) -> str:
    store.write_folder("adapter", checkpoint_files.pack(state, "tiny", optimizer=True))
    return "adapter"


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(TOKENS).logits[0].log_softmax(-1)
    return found


def on_base(folder: Path, adapter_folder: Path) -> torch.Tensor:
    base = AutoModelForCausalLM.from_pretrained(folder)
    return logits(PeftModel.from_pretrained(base, adapter_folder))


def merged(store: Store, folder: Path, prefix: str, *, untie: bool = False) -> dict[str, Any]:
    return merge(
        store,
        str(folder),
        base_model="tiny",
        prefix=prefix,
        target="merged",
        untie_unembedding=untie,
        report=quiet,
    )


def shard(folder: Path) -> None:
    """The same model in two files and an index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2]}
    halves["model-00002-of-00002.safetensors"] = names[1::2]
    for file, mine in halves.items():
        save_file({name: tensors[name] for name in mine}, folder / file, {"format": "pt"})
    weight_map = {name: file for file, mine in halves.items() for name in mine}
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("sharded", [False, True])
def test_a_merged_model_says_what_the_adapter_says_on_its_base(
    tmp_path: Path, sharded: bool
) -> None:
    folder = save_tiny("llama", tmp_path / "tiny")
    if sharded:
        shard(folder)
    store = Store(str(tmp_path / "store"))
    result = merged(store, folder, saved(store, trained(folder)))
    assert (result["merged_tensors"], result["untied"]) == (15, False)
    assert result["size_bytes"] == sum(
        file.stat().st_size
        for file in (tmp_path / "store/merged").iterdir()
        if file.name != "manifest.json"
    )
    found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "store/merged"))
    expected = on_base(folder, tmp_path / "store/adapter")
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    assert (expected - logits(AutoModelForCausalLM.from_pretrained(folder))).abs().max() > 0.05


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("sharded", [False, True])
def test_a_tied_head_is_refused_by_name_or_made_a_tensor_of_its_own(
    tmp_path: Path, sharded: bool
) -> None:
    folder = save_tiny("qwen3", tmp_path / "tiny")
    if sharded:
        shard(folder)
    store = Store(str(tmp_path / "store"))
    prefix = saved(store, trained(folder))
    with pytest.raises(InvalidInput, match="untie_unembedding"):
        merged(store, folder, prefix)
    assert merged(store, folder, prefix, untie=True)["untied"] is True
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "store/merged")
    assert model.config.tie_word_embeddings is False
    base = load_file(next(folder.glob("*.safetensors")))
    for name, tensor in base.items():
        if "embed_tokens" in name:
            assert torch.equal(model.model.embed_tokens.weight, tensor)
    expected = on_base(folder, tmp_path / "store/adapter")
    torch.testing.assert_close(logits(model), expected, atol=2e-5, rtol=0)


def test_a_tied_head_that_was_not_trained_merges_as_it_is(tmp_path: Path) -> None:
    folder = save_tiny("gemma3", tmp_path / "tiny")
    store = Store(str(tmp_path / "store"))
    result = merged(store, folder, saved(store, trained(folder, train_unembed=False)))
    assert result["untied"] is False
    found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "store/merged"))
    expected = on_base(folder, tmp_path / "store/adapter")
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_a_merge_that_overflows_or_does_not_fit_writes_no_folder(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "tiny")
    store = Store(str(tmp_path / "store"))
    state = trained(folder)
    state.adapter.row.fill_(3e38)
    with pytest.raises(InvalidInput, match="not finite"):
        merged(store, folder, saved(store, state))
    assert not store.has_folder("merged")
    other = save_tiny("qwen3", tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(3, 32)
    save_file(tensors, other / "model.safetensors")
    with pytest.raises(InvalidInput, match=r"does not fit the base model's .*up_proj"):
        merged(store, other, saved(store, trained(folder, train_unembed=False)))


_PEAK = """
import resource, sys, torch
from pathlib import Path
from tinsmith_worker.carrying.merge import merge
from tinsmith_worker.store import Store
folder, store = sys.argv[1:]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = merge(Store(store), folder, base_model="big", prefix="adapter", target="merged",
               untie_unembedding=False, report=lambda *_: None)
print((result["peak_memory_bytes"] >> 10) - before, result["size_bytes"])
"""


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """A matrix of 256 MB and an adapter of its own: memory holds some blocks of rows."""
    folder = tmp_path / "big"
    folder.mkdir()
    name = "model.layers.0.mlp.up_proj"
    save_file({f"{name}.weight": torch.zeros(32768, 2048)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"tie_word_embeddings": false}')
    halves = {"lora_A": torch.ones(2, 2048), "lora_B": torch.ones(32768, 2)}
    tensors = {f"base_model.model.{name}.{half}.weight": one for half, one in halves.items()}
    store = Store(str(tmp_path / "store"))
    config = b'{"r": 2, "lora_alpha": 32}'
    files = {"adapter_config.json": config, "adapter_model.safetensors": save(tensors)}
    store.write_folder("adapter", files)
    (folder / "head.txt").write_text("lm_head is elsewhere")
    command = [sys.executable, "-c", _PEAK, str(folder), str(tmp_path / "store")]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    grown_kib, size = map(int, said)
    assert size > 256 << 20
    assert grown_kib < 160 << 10
    found = load_file(tmp_path / "store/merged/model.safetensors")[f"{name}.weight"]
    assert bool((found == 32.0).all())  # 32 / 2 times the two ones


# In


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("base") / "tiny")


PATTERNS = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.0.self_attn.v_proj": 40}}


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize(
    ("targets", "options"),
    [
        (["q_proj", "v_proj"], {"lora_alpha": 12}),
        (["q_proj", "v_proj", "down_proj"], {"lora_alpha": 7, "use_rslora": True}),
        (["q_proj", "v_proj", "lm_head"], {"lora_alpha": 16, **PATTERNS}),
        (["gate_proj"], {"lora_alpha": 3, "layers_to_transform": [1]}),
    ],
)
def test_an_adapter_from_outside_says_here_what_it_says_in_peft(
    base: Path, tmp_path: Path, targets: list[str], options: dict[str, Any]
) -> None:
    torch.manual_seed(3)
    lora = LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM", **options)
    peft = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora)
    for name, weight in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    expected = logits(peft)
    peft.save_pretrained(tmp_path / "outside")
    store = Store(str(tmp_path / "store"))
    weights = (tmp_path / "outside/adapter_model.safetensors").read_bytes()
    store.write_folder("upload", {"adapter_model.safetensors": weights})
    config = PeftConfig.parse((tmp_path / "outside/adapter_config.json").read_bytes())
    result = taken_in(store, base, config)
    assert result["rank"] == max(4, *options.get("rank_pattern", {"": 4}).values())
    found = on_base(base, tmp_path / "store/inside")
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    assert not any(path.endswith(tuple(targets)) for path in result["fresh_modules"][:1])


def taken_in(store: Store, base: Path, config: PeftConfig) -> dict[str, Any]:
    return take_in(
        store,
        str(base),
        base_model="tiny",
        source="upload",
        target="inside",
        config={name: getattr(config, name) for name in config.__struct_fields__},
        seed=5,
        report=quiet,
    )


def test_a_whole_weight_beside_the_adapter_must_be_the_bases_own(
    base: Path, tmp_path: Path
) -> None:
    head = "base_model.model.lm_head.base_layer.weight"
    own = load_file(base / "model.safetensors")["lm_head.weight"]
    config = PeftConfig.parse(json.dumps(PLAIN).encode())
    store = Store(str(tmp_path))
    tensors = matrices("model.layers.0.self_attn.q_proj")
    for weight in (own.bfloat16(), own, own + 0.01, own[:3]):
        content = save(tensors | {head: weight})
        store.write_folder("upload", {"adapter_model.safetensors": content})
        if weight.shape == own.shape and torch.equal(weight, own.to(weight.dtype)):
            assert taken_in(store, base, config)["rank"] == 4
        else:
            with pytest.raises(InvalidInput, match=r"lm_head\.base_layer"):
                taken_in(store, base, config)


PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 32}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights"),
        ({"layer_replication": [[0, 4]]}, "layer_replication"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"peft_type": "IA3"}, "peft_type"),
        ({"tomorrows_field": {"a": 1}}, "tomorrows_field"),
        ({"r": 0}, "r"),
        ({"r": True}, "r"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"rank_pattern": {"(a+)+b": 4}}, "rank_pattern"),
        ({"rank_pattern": {"q_proj": -1}}, "rank_pattern"),
        ({"alpha_pattern": [1]}, "alpha_pattern"),
    ],
)
def test_what_cannot_be_carried_is_refused_by_its_name(change: dict[str, Any], field: str) -> None:
    PeftConfig.parse(json.dumps(PLAIN).encode())
    with pytest.raises(TinsmithError, match=rf"adapter_config\.{field}"):
        PeftConfig.parse(json.dumps(PLAIN | change).encode())


@pytest.mark.parametrize("text", [b"", b"[]", b"\xff", b'"LORA"', b"{}"])
def test_a_config_that_is_none_is_refused(text: bytes) -> None:
    with pytest.raises(TinsmithError, match="adapter_config"):
        PeftConfig.parse(text)


def matrices(path: str, rank: int = 4, in_features: int = 32) -> dict[str, torch.Tensor]:
    prefix = f"base_model.model.{path}"
    return {
        f"{prefix}.lora_A.weight": torch.ones(rank, in_features),
        f"{prefix}.lora_B.weight": torch.ones(32, rank),
    }


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (matrices("model.layers.7.self_attn.q_proj"), "trains no module"),
        (matrices("model.layers.0.self_attn.q_proj", rank=3), r"q_proj.lora_A is \[3, 32\]"),
        (matrices("model.layers.0.self_attn.q_proj", in_features=8), "lora_A"),
        ({"base_model.model.lm_head.lora_A.weight": torch.ones(4, 32)}, "only one of"),
        ({"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(4, 9)}, "embedding"),
        ({"base_model.model.lm_head.lora_magnitude_vector.weight": torch.ones(4)}, "not a LoRA"),
        (dict.fromkeys(["x.lora_A.weight"], torch.ones(2, 2)), "not a LoRA"),
        ({}, "no LoRA matrix"),
    ],
)
def test_tensors_that_fit_nowhere_are_refused_by_name(
    base: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    config = PeftConfig.parse(json.dumps(PLAIN).encode())
    with pytest.raises(InvalidInput, match=message):
        adapter_of(shapes_of(str(base), "tiny"), config, pairs_of(tensors), 0)


@pytest.mark.parametrize(
    "data", [b"", b"PK\x03\x04", b"\xff" * 64, b"\x08" + bytes(7) + b"{}      x"]
)
def test_bytes_that_are_no_safetensors_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput, match="not a whole safetensors file"):
        tensors_of(data)


def test_numbers_that_are_not_finite_are_refused(base: Path) -> None:
    bad = matrices("model.layers.0.self_attn.q_proj")
    next(iter(bad.values()))[0, 0] = float("nan")
    with pytest.raises(InvalidInput, match="finite"):
        pairs_of(bad)


def test_our_own_checkpoint_comes_back_bit_by_bit_with_its_moments(
    base: Path, tmp_path: Path
) -> None:
    state = trained(base)
    state.steps, state.moments = 7, (state.adapter.row * 2, state.adapter.row.square())
    files = checkpoint_files.pack(state, "tiny", optimizer=True)
    store = Store(str(tmp_path))
    store.write_folder("upload", files)
    config = PeftConfig.parse(files["adapter_config.json"])
    assert taken_in(store, base, config)["steps"] == 7
    back = store.read_folder("inside")
    assert back["adapter_model.safetensors"] == files["adapter_model.safetensors"]
    assert back["optimizer.safetensors"] == files["optimizer.safetensors"]
    other = config.__class__(rank=4, alpha=16, rslora=False, rank_pattern={}, alpha_pattern={})
    with pytest.raises(InvalidInput, match="optimizer: its state fits only"):
        taken_in(store, base, other)
