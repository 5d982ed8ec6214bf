"""tinsmith.distill against a real service: by either client, with and without the service's own losses."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinker
import torch
from tinsmith import ServiceClient, types
from tinsmith.distill import (
    GKD,
    GOLD,
    OPD,
    SDFT,
    Distiller,
    Example,
    MiniLLM,
    PromptDistillation,
    Rollout,
    Teacher,
)
from tinsmith.distill.divergence import divergence
from tinsmith.distill.returns import minillm

from tests.contract.conftest import BASE_MODEL, SECOND_MODEL, VOCAB, Service
from tests.contract.recording_proxy import recording_proxy

PROMPTS = ["w5 w9 w14", "w7 w31", "w4 w8 w15 w16", "w60 w61"]


@pytest.fixture(scope="module")
def thin(service: Service) -> Iterator[ServiceClient]:
    with ServiceClient(base_url=service.url, api_key=service.api_key) as client:
        yield client


@pytest.fixture(scope="module")
def official(service: Service) -> Iterator[tinker.ServiceClient]:
    with tinker.ServiceClient(base_url=service.url, api_key=service.api_key) as client:
        yield client


def student(client: Any, seed: int = 4) -> Any:
    return client.create_lora_training_client(BASE_MODEL, rank=4, seed=seed).result()


def distiller(run: Any, teacher: Any, method: Any, **more: Any) -> Distiller:
    settings = {"max_tokens": 5, "group_size": 2, "learning_rate": 1e-2} | more
    return Distiller(run, teacher, method, **settings)


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("thin", OPD(loss="ppo")),
        ("official", OPD(baseline=True, reduction="mean")),
        ("official", GKD(beta=0.5, scale_beta=True)),
        ("thin", MiniLLM()),
        ("official", PromptDistillation()),
    ],
    ids=["ppo", "opd", "jsd", "minillm", "prompt"],
)
def test_every_method_trains_by_either_client(
    request: pytest.FixtureRequest, kind: str, method: Any
) -> None:
    run = student(request.getfixturevalue(kind))
    made = distiller(run, SECOND_MODEL, method)
    steps = made.run(PROMPTS, 2, batch_size=2)
    made.close()
    assert [one.number for one in steps] == [0, 1]
    assert all(np.isfinite(value) for one in steps for value in one.metrics.values())
    assert all(one.metrics["grad_norm"] > 0 for one in steps)


@pytest.mark.parametrize("backend", ["service", "plain"])
def test_training_brings_the_student_to_its_teacher(thin: ServiceClient, backend: str) -> None:
    run = student(thin)
    judge = distiller(run, SECOND_MODEL, GKD(), backend="service")
    before = judge.evaluate(PROMPTS, num_samples=8)["divergence"]
    made = distiller(
        run, SECOND_MODEL, GKD(top_k=0 if backend == "service" else 90), backend=backend
    )
    made.run(PROMPTS, 20, batch_size=4)
    assert judge.evaluate(PROMPTS, num_samples=8)["divergence"] < 0.5 * before


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_plain_calls_give_the_gradient_of_the_services_loss_on_the_whole_vocabulary(
    thin: ServiceClient, beta: float
) -> None:
    norms = []
    for backend in ("service", "plain"):
        top_k = 0 if backend == "service" else VOCAB
        made = distiller(student(thin), SECOND_MODEL, GKD(beta=beta, top_k=top_k), backend=backend)
        one = made.step(PROMPTS)
        norms.append((one.metrics["divergence"], one.metrics["grad_norm"]))
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


@pytest.mark.parametrize("exclude_current", [True, False])
def test_minillm_in_one_call_is_minillm_in_two(thin: ServiceClient, exclude_current: bool) -> None:
    norms, words = [], []
    for backend, top_k in (("service", 0), ("plain", VOCAB)):
        method = MiniLLM(gamma=0.9, single_step=0.7, top_k=top_k, exclude_current=exclude_current)
        with distiller(student(thin), SECOND_MODEL, method, backend=backend) as made:
            one = made.step(PROMPTS)
        norms.append((one.metrics["divergence"], one.metrics["grad_norm"]))
        words.append(made.support)
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    assert words[0] == "x_distill_pg on the service, over the whole vocabulary"
    assert words[1].count(";") == 1


def test_the_divergence_on_a_support_is_trls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.iw_opd.iw_opd_trainer import IWOPDTrainer

    torch.manual_seed(0)
    student_logits, teacher_logits = torch.randn(1, 5, 11), torch.randn(1, 5, 11)
    lp, lq = student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
    for beta, source in ((0.0, lq), (1.0, lp)):
        for tail in (True, False):
            theirs = IWOPDTrainer.generalized_jsd_loss(
                student_logits, teacher_logits, beta=beta, top_k=3, add_tail=tail, reduction="sum"
            )
            ids = source[0].topk(3).indices
            there = torch.ones_like(ids, dtype=torch.bool)
            ours = divergence(lp[0].gather(1, ids), lq[0].gather(1, ids), there, beta, tail)
            assert ours.sum().item() == pytest.approx(theirs.item(), abs=1e-5)


def test_minillm_returns_are_those_of_the_definition() -> None:
    ratios = np.array([1.0, 2.0, 4.0], np.float32)
    # R[n+1] with gamma 0.5: 2 + 0.5*4, 4, 0; normalised by 1.5, 1, 1
    assert minillm(ratios, 0.5, False, True).tolist() == [4.0, 4.0, 0.0]
    assert minillm(ratios, 0.5, True, True) == pytest.approx([4 / 1.5, 4.0, 0.0])
    assert minillm(ratios, 0.5, False, False).tolist() == [3.0, 4.0, 4.0]
    assert minillm(ratios, 0.0, True, False).tolist() == [1.0, 2.0, 4.0]
    assert minillm(ratios, 0.0, True, True).tolist() == [0.0, 0.0, 0.0]


def test_a_run_that_was_killed_goes_on_with_the_same_curve(
    service: Service, thin: ServiceClient, tmp_path: Path
) -> None:
    for ahead in (True, False):
        folder = tmp_path / str(ahead)
        whole = distiller(student(thin), SECOND_MODEL, GKD(beta=0.5), ahead=ahead)
        whole.run(PROMPTS, 5, batch_size=2, metrics=folder / "whole.jsonl")

        class Killed(Exception):
            pass

        class Bomb:
            def write(self, step: int, metrics: Any) -> None:
                if step == 2:  # after the save at 2, before that at 4
                    raise Killed

            def resume(self, step: int) -> None: ...

            def close(self) -> None: ...

        asked = {"state": folder / "state.json", "save_every": 2, "metrics": folder / "cut.jsonl"}
        cut = distiller(student(thin), SECOND_MODEL, GKD(beta=0.5), ahead=ahead)
        with pytest.raises(Killed):
            cut.run(PROMPTS, 5, batch_size=2, reports=[Bomb()], **asked)
        with (folder / "cut.jsonl").open("a") as file:
            file.write('{"step": 2, "lo')  # killed while writing
        with ServiceClient(base_url=service.url, api_key=service.api_key) as later:
            again = distiller(student(later, seed=99), SECOND_MODEL, GKD(beta=0.5), ahead=ahead)
            steps = again.run(PROMPTS, 5, batch_size=2, **asked)
        assert [one.number for one in steps] == [2, 3, 4]
        names = ("step", "loss", "divergence", "length", "grad_norm")
        curves = [
            [[row[name] for name in names] for row in map(json.loads, path.open())]
            for path in (folder / "whole.jsonl", folder / "cut.jsonl")
        ]
        assert curves[0] == curves[1]


def test_a_state_of_another_run_is_refused(thin: ServiceClient, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    distiller(student(thin), "base", OPD()).run(PROMPTS, 1, batch_size=2, state=state)
    with pytest.raises(ValueError, match="another method"):
        distiller(student(thin), "base", GKD()).run(PROMPTS, 2, batch_size=2, state=state)


def test_each_example_has_the_teacher_that_it_names(thin: ServiceClient) -> None:
    run = student(thin)
    examples = [Example(prompt, teacher=index % 2) for index, prompt in enumerate(PROMPTS)]
    for method in (OPD(), GKD()):
        made = distiller(run, ["base", SECOND_MODEL], method, learning_rate=0.0)
        one = made.step(examples)
        assert {rollout.teacher for rollout in one.rollouts} == {0, 1}
        alone = distiller(run, "base", method, learning_rate=0.0).step(PROMPTS)
        # A fresh student is its base model: only the other teacher finds anything to say.
        assert abs(alone.metrics.get("sampled_kl", alone.metrics.get("divergence"))) < 1e-5
        assert one.metrics.get("sampled_kl", one.metrics.get("divergence")) > 1e-4
    with pytest.raises(ValueError, match="is not from 0 to 1"):
        made.step([Example("w5", teacher=2)])


def test_a_teacher_may_read_more_than_the_student(thin: ServiceClient) -> None:
    run = student(thin)
    examples = [Example(one, teacher_prompt=f"w70 w71 {one}") for one in PROMPTS]
    made = distiller(run, "base", SDFT(top_k=20), learning_rate=0.0)
    assert made.step(examples).metrics["divergence"] > 1e-5
    same = [Example(one, teacher_prompt=one) for one in PROMPTS]
    assert abs(made.step(same).metrics["divergence"]) < 1e-6
    reading = distiller(run, Teacher("base", system_prompt="w70 w71"), OPD(), learning_rate=0.0)
    assert abs(reading.step(PROMPTS).metrics["sampled_kl"]) > 1e-4


def test_the_share_that_the_student_completes_is_exact(thin: ServiceClient) -> None:
    examples = [Example(prompt, completion="w1 w3 w5") for prompt in PROMPTS]
    made = distiller(student(thin), "base", GKD(lmbda=0.25), group_size=1)
    sources = [one.source for one in made.step(examples).rollouts]
    assert sorted(sources) == ["data", "data", "data", "student"]
    taught = distiller(student(thin), "base", GKD(lmbda=0.5, seq_kd=True), group_size=1)
    assert [one.source for one in taught.step(PROMPTS).rollouts].count("teacher") == 2
    with pytest.raises(ValueError, match="no completion"):
        made.step(PROMPTS)


def test_without_the_extension_plain_calls_do_it_and_say_so(service: Service) -> None:
    """In front of the service stands an HTTP server that answers 404 to what Tinker does not have."""
    with (
        recording_proxy(service.url, without={"/extensions"}) as (url, arrived),
        ServiceClient(base_url=url, api_key=service.api_key) as client,
    ):
        run = student(client)
        teacher = Teacher(SECOND_MODEL, tokenizer=run.get_tokenizer())
        with distiller(run, teacher, GKD()) as made:
            assert "top 20 and a tail" in made.support
            assert made.step(PROMPTS).metrics["divergence"] > 0
        with distiller(run, teacher, MiniLLM(top_k=8)) as made:
            assert made.support.count("plain Tinker calls") == 2
            assert made.step(PROMPTS).metrics["grad_norm"] > 0
        with pytest.raises(ValueError, match="does not offer x_distill_jsd"):
            distiller(run, SECOND_MODEL, GKD(), backend="service")
        with pytest.raises(ValueError, match="temperature"):
            distiller(run, SECOND_MODEL, GKD(temperature=2.0))
        with pytest.raises(ValueError, match="x_distill_uld"):
            distiller(run, SECOND_MODEL, GOLD(mode="gold"))
    asked = [path for path, _ in arrived]
    assert "/extensions" in asked
    assert "/forward_backward" in asked


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: GKD(beta=1.5), "GKD.beta"),
        (lambda: GKD(top_k=1, tail=False), "teaches nothing"),
        (lambda: OPD(loss="sft"), "OPD.loss"),
        (lambda: GOLD(mode="gould"), "GOLD.mode"),
        (lambda: MiniLLM(single_step=0, kl_coef=0), "nothing is taught"),
        (lambda: SDFT(top_k=1), "SDFT.top_k"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_a_rollout_survives_its_journey_through_the_state() -> None:
    one = Rollout([1, 2], [3], [-0.5], None, 1, "student", False)
    assert Rollout(**json.loads(json.dumps(one.to_json()))) == one
    assert types.ModelInput.from_ints(one.tokens).length == 3
