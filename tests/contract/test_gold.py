"""Distillation between byte-level tokenizers that split text differently; TRL's ULDLoss as the reference."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tinsmith import ServiceClient, TrainingClient, types
from tinsmith.distill import GOLD, Distiller, Example, Rollout, Teacher
from tinsmith.distill.alignment import decode, plain_text
from tinsmith.trl import GOLDConfig, GOLDTrainer
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, TokenizersBackend

from tests.conftest import running_valkey
from tests.contract.conftest import Service, running_service

STUDENT, TEACHER = "bytes/student", "bytes/teacher"
CORPORA = {
    STUDENT: ["the cat sat on the mat while the rain fell on the town"],
    TEACHER: ["he cats at onth ema twh ile ther ain felo nt het own, it is wet; it is wet"],
}
ROWS = [
    ("The rain", " fell on the town while the cat sat."),
    ("A hat", " is on the mat; it is wet"),
    ("Numbers:", " 12 and 345, naïve ☃"),
]
END = "<|end|>"


def save_model(folder: Path, corpus: list[str], size: int, seed: int) -> Path:
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=[END], show_progress=False
    )
    backend.train_from_iterator(corpus * 4, trainer)
    tokenizer = TokenizersBackend(tokenizer_object=backend, eos_token=END)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bytes")
    return {
        name: save_model(root / name, CORPORA[name], size, seed)
        for seed, (name, size) in enumerate({STUDENT: 310, TEACHER: 320}.items())
    }


@pytest.fixture(scope="module")
def bytes_service(
    tmp_path_factory: pytest.TempPathFactory, folders: dict[str, Path]
) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("gold")
    with running_valkey(folder) as valkey, running_service(folder, valkey, folders) as made:
        yield made


@pytest.fixture(scope="module")
def client(bytes_service: Service) -> Iterator[ServiceClient]:
    with ServiceClient(base_url=bytes_service.url, api_key=bytes_service.api_key) as client:
        yield client


def student(client: ServiceClient) -> TrainingClient:
    return client.create_lora_training_client(STUDENT, rank=4, seed=4).result()


def offsets(tokenizer: Any, tokens: Sequence[int]) -> torch.Tensor:
    """Byte offsets of a completion's tokens [1, T, 2], as TRL's collator has them.

    A byte-level token has a character for each byte (GPT-2); the end of text stands for none.
    """
    names = [tokenizer.convert_ids_to_tokens(token) for token in tokens]
    ends = np.cumsum([0 if name == END else len(name) for name in names])
    return torch.from_numpy(np.stack([np.append(0, ends[:-1]), ends], 1))[None]


def trls(folders: dict[str, Path], settings: dict[str, Any]) -> tuple[float, float]:
    """Sum over the rows of TRL's own loss, times the groups of each; and how many there are."""
    from trl.experimental.gold.gold_trainer import ULDLoss

    tokenizers = [AutoTokenizer.from_pretrained(folders[name]) for name in (STUDENT, TEACHER)]
    models = [LlamaForCausalLM.from_pretrained(folders[name]) for name in (STUDENT, TEACHER)]
    config = SimpleNamespace(
        uld_crossentropy_weight=0.0,
        uld_distillation_weight=1.0,
        uld_student_temperature=settings.get("temperature", 1.0),
        uld_teacher_temperature=settings.get("temperature", 1.0),
        uld_skip_student_eos=True,
        uld_skip_teacher_eos=True,
        use_extended_uld=settings.get("mode") == "gold",
        uld_token_merge_strategy=settings.get("merge", "bayesian"),
        uld_use_hybrid_loss=settings["hybrid"],
        uld_hybrid_matched_weight=None,
        uld_hybrid_unmatched_weight=None,
        beta=settings.get("beta", 0.5),
    )
    loss = ULDLoss(config, *tokenizers)
    total, count, merged = 0.0, 0, np.zeros(2)
    for prompt, answer in ROWS:
        sides = []
        for tokenizer, model in zip(tokenizers, models, strict=True):
            asked, said = tokenizer.encode(prompt), tokenizer.encode(answer)
            ids = torch.tensor([[*asked, *said, tokenizer.eos_token_id]])
            labels = ids.clone()
            labels[:, : len(asked)] = -100
            spans = torch.zeros(1, ids.shape[1], 2, dtype=torch.long)
            spans[:, len(asked) :] = offsets(tokenizer, ids[0, len(asked) :].tolist())
            with torch.no_grad():
                sides.append((model(input_ids=ids).logits, labels, ids, spans, len(said)))
        (s_logits, s_labels, s_ids, s_spans, s_size) = sides[0]
        (t_logits, t_labels, t_ids, t_spans, t_size) = sides[1]
        groups = min(s_size, t_size)
        if settings.get("mode") == "gold":
            s_answer = s_spans[0, -s_size - 1 : -1].tolist()
            t_answer = t_spans[0, -t_size - 1 : -1].tolist()
            groups = len(ULDLoss._align_by_byte_offsets(s_answer, t_answer)[0])
            merged = merged + np.array([s_size, t_size]) - groups
        found = loss(s_logits, t_logits, s_labels, t_labels, s_ids, t_ids, s_spans, t_spans)
        total, count = total + float(found) * groups, count + groups
    assert (
        settings["mode"] == "uld" or (merged > 0).all()
    )  # stretches of several tokens, on both sides
    return total, count


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "gold", "hybrid": False},
        {"mode": "gold", "hybrid": True, "beta": 0.5},
        {"mode": "gold", "hybrid": False, "temperature": 1.7},
        {"mode": "gold", "hybrid": False, "merge": "observed"},
        {"mode": "uld", "hybrid": False},
    ],
    ids=["gold", "hybrid", "temperature", "observed", "position"],
)
def test_the_loss_is_that_of_trls_uld_on_the_same_ids(
    client: ServiceClient,
    folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    method = GOLD(lmbda=0.0, reduction="sum", **settings)
    made = Distiller(student(client), TEACHER, method, learning_rate=0.0)
    examples = [Example(prompt, completion=answer) for prompt, answer in ROWS]
    rollouts = made.draw(examples, 0, made.sampler()).collect()
    data = made.signal.data(rollouts)  # type: ignore[attr-defined]
    config = made.signal._config  # type: ignore[attr-defined]
    found = made.run_client.forward(data, "x_distill_uld", config).result().metrics
    total, count = trls(folders, settings)
    made.close()
    assert found["distill/chunks:sum"] == count
    # a stretch weighs what its tokens weigh in the mean: 1 each, as the sum of TRL's groups
    assert found["loss:sum"] == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("mode", ["chunk", "gold", "uld"])
def test_a_student_learns_from_a_teacher_with_other_tokens(
    client: ServiceClient, mode: str
) -> None:
    """Random models say broken characters, which are what the two sides spell differently."""
    method = GOLD(mode=mode, hybrid=False)
    settings: Any = {"max_tokens": 16, "group_size": 4, "learning_rate": 3e-2}
    with Distiller(student(client), TEACHER, method, **settings) as made:
        tokenizer = made.student.tokenizer
        steps = [made.step([prompt for prompt, _ in ROWS]) for _ in range(12)]
    assert any(not plain_text(tokenizer, one.completion) for step in steps for one in step.rollouts)
    name = "sampled_kl" if mode == "chunk" else "loss"
    values = [step.metrics[name] for step in steps]
    assert all(step.metrics["grad_norm"] > 0 for step in steps)
    assert np.isfinite(values).all()
    if (
        mode == "chunk"
    ):  # the others are no divergence of the text: they may rise where the student goes
        assert np.mean(values[-3:]) < 0.9 * np.mean(values[:3])


def test_golds_trainer_asks_for_trls_loss(
    bytes_service: Service, folders: dict[str, Path], tmp_path: Path
) -> None:
    losses = {}
    for name, more in (("chunk", {}), ("gold", {"use_uld_loss": True})):
        args = GOLDConfig(
            str(tmp_path / name), base_url=bytes_service.url, api_key=bytes_service.api_key,
            lmbda=0.0 if more else 1.0, max_steps=6, logging_steps=1, learning_rate=2e-2,
            max_completion_length=8, lr_scheduler_type="constant", save_strategy="no", **more,
        )  # fmt: skip
        trainer = GOLDTrainer(
            model=STUDENT,
            teacher_model=TEACHER,
            args=args,
            train_dataset=[{"prompt": prompt, "completion": answer} for prompt, answer in ROWS],
            processing_class=AutoTokenizer.from_pretrained(folders[STUDENT]),
        )
        assert ("x_distill_uld" in trainer.distiller.support) is bool(more)
        trainer.train()
        losses[name] = [row["loss"] for row in trainer.state.log_history]
        if more:
            trainer.save_model(tmp_path / "saved")
        trainer.close()
    assert len(losses["chunk"]) == 6
    assert losses["gold"][-1] < losses["gold"][0]
    assert (tmp_path / "saved/adapter_config.json").exists()


def test_ends_of_text_are_compared_where_neither_is_skipped(client: ServiceClient) -> None:
    counts = []
    for skip in (True, False):
        method = GOLD(
            mode="gold", hybrid=False, lmbda=0.0, skip_student_eos=skip, skip_teacher_eos=skip
        )
        with Distiller(student(client), TEACHER, method, learning_rate=0.0) as made:
            examples = [Example(prompt, completion=answer) for prompt, answer in ROWS]
            data = made.signal.data(made.draw(examples, 0, made.sampler()).collect())  # type: ignore[attr-defined]
            config = made.signal._config  # type: ignore[attr-defined]
            found = made.run_client.forward(data, "x_distill_uld", config).result().metrics
            counts.append(found["distill/chunks:sum"])
    assert counts[1] == counts[0] + len(ROWS)


def test_what_is_no_text_on_one_side_is_left_out(
    client: ServiceClient, folders: dict[str, Path]
) -> None:
    """A completion that ends in half a character: the stretches before it are compared."""
    ours = AutoTokenizer.from_pretrained(folders[STUDENT])
    broken = ours.encode(" the mat ☃")[:-1]
    assert "�" in decode(ours, broken)
    rollout = Rollout(ours.encode("On"), broken, [-1.0] * len(broken), ours.encode("On"))
    with Distiller(student(client), Teacher(TEACHER), GOLD(mode="gold", hybrid=False)) as made:
        member = made.staff[0]
        ranges = member.align(rollout)
        assert ranges is not None
        sequence = member.sequence(rollout)
        spelled = [
            (decode(ours, rollout.tokens[s0 + 1 : s1 + 1]), decode(member.renderer.tokenizer, sequence[t0:t1]))
            for s0, s1, t0, t1 in ranges
        ]  # fmt: skip
        assert all(one == other for one, other in spelled)
        assert "".join(one for one, _ in spelled).strip() == "the mat"
        found = made.run_client.forward(
            made.signal.data([rollout]),  # type: ignore[attr-defined]
            "x_distill_uld",
            made.signal._config,  # type: ignore[attr-defined]
        ).result()
        assert found.metrics["distill/chunks:sum"] == len(ranges)
        assert types.ModelInput.from_ints(sequence).length > len(ranges)
