"""What the benchmarks run: seeded, so that every side and every day meets the same tokens.

Token ids are drawn at random; what a pass costs does not depend on what the tokens say. Sequences
are numpy arrays, as they come off the wire. Nothing here knows who runs it.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

VOCAB_SIZE = 49_000  # SmolLM2 has 49,152; the last ones are left alone

TokenIds = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Datum:
    """One example: the token at each position, the token to predict there, and its weight."""

    tokens: TokenIds
    targets: TokenIds
    weights: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Batch:
    """The data of one forward_backward."""

    data: tuple[Datum, ...]

    @property
    def num_tokens(self) -> int:
        return sum(len(datum) for datum in self.data)

    @property
    def num_weighted(self) -> int:
        return sum(int(np.count_nonzero(datum.weights)) for datum in self.data)

    @property
    def padding(self) -> float:
        """Positions of the right-padded batch for each of its tokens."""
        return len(self.data) * max(len(datum) for datum in self.data) / self.num_tokens


@dataclass(frozen=True)
class SampleRequest:
    """`num_samples` completions of exactly `new_tokens` tokens: an end token does not end them."""

    prompt: TokenIds
    new_tokens: int
    adapter: int
    seed: int
    num_samples: int = 1


def ragged_sft(seed: int = 0) -> Batch:
    """8 sequences of 32 to 256 tokens, padding 1.6, loss on each one's last third."""
    random = np.random.default_rng(seed)
    lengths = random.permutation([32, 72, 112, 152, 184, 216, 240, 256])
    return Batch(tuple(_datum(random, length, weighted=length // 3) for length in lengths))


def even_sft(seed: int = 0) -> Batch:
    """4 sequences of nearly one length, padding 1.1: what a careful user feeds in fp32."""
    random = np.random.default_rng(seed)
    lengths = random.permutation([104, 114, 120, 128])
    return Batch(tuple(_datum(random, length, weighted=length // 3) for length in lengths))


def rl_group(seed: int = 0, *, prompt: int = 256, samples: int = 16, completion: int = 64) -> Batch:
    """Completions of one prompt, each a sequence with the prompt in front; loss on the completion."""
    random = np.random.default_rng(seed)
    shared = _draw(random, prompt)
    sequences = [np.concatenate([shared, _draw(random, completion)]) for _ in range(samples)]
    return Batch(tuple(_shifted(tokens, weighted=completion) for tokens in sequences))


def tenants(num_tenants: int, tokens_each: int, seed: int = 0) -> tuple[Batch, ...]:
    """One small batch a tenant, every position weighted; 128 tokens are two sequences of 64."""
    random = np.random.default_rng(seed)
    lengths = [min(64, tokens_each)] * max(1, tokens_each // 64)
    return tuple(
        Batch(tuple(_datum(random, length, weighted=length) for length in lengths))
        for _ in range(num_tenants)
    )


def sampling(num_requests: int, num_adapters: int = 4, seed: int = 0) -> tuple[SampleRequest, ...]:
    """Prompts of 16 to 96 tokens, 8 to 64 new tokens each, over the adapters in turn."""
    random = np.random.default_rng(seed)
    return tuple(
        SampleRequest(
            prompt=_draw(random, int(random.integers(16, 97))),
            new_tokens=int(random.integers(8, 65)),
            adapter=index % num_adapters,
            seed=index,
        )
        for index in range(num_requests)
    )


def many_samples(seed: int = 0, *, prompt: int = 128, new_tokens: int = 8) -> SampleRequest:
    """16 samples of one prompt, short beside it."""
    random = np.random.default_rng(seed)
    return SampleRequest(_draw(random, prompt), new_tokens, adapter=0, seed=seed, num_samples=16)


def teacher_prompts(count: int = 64, seed: int = 0) -> tuple[TokenIds, ...]:
    """Completions of 16 to 64 tokens that a teacher scores, as on-policy distillation sends them."""
    random = np.random.default_rng(seed)
    return tuple(_draw(random, int(random.integers(16, 65))) for _ in range(count))


def conversations(
    count: int = 4, *, prompt: int = 256, new_tokens: int = 8, seed: int = 0
) -> tuple[SampleRequest, ...]:
    """Long first turns with short answers."""
    random = np.random.default_rng(seed)
    return tuple(
        SampleRequest(_draw(random, prompt), new_tokens, adapter=0, seed=index)
        for index in range(count)
    )


def next_turn(request: SampleRequest, answer: list[int], *, tokens: int = 16) -> SampleRequest:
    """The conversation so far and `tokens` more of its user's."""
    more = _draw(np.random.default_rng(request.seed), tokens)
    prompt = np.concatenate([request.prompt, np.array(answer, np.int32), more])
    return replace(request, prompt=prompt)


def chunks(batch: Batch, count: int) -> tuple[Batch, ...]:
    """The batch as `count` requests, as the SDK cuts a large one."""
    size = -(-len(batch.data) // count)
    return tuple(
        Batch(batch.data[start : start + size]) for start in range(0, len(batch.data), size)
    )


def new_tokens(requests: tuple[SampleRequest, ...]) -> int:
    return sum(request.new_tokens * request.num_samples for request in requests)


def _datum(random: np.random.Generator, length: int, *, weighted: int) -> Datum:
    return _shifted(_draw(random, int(length) + 1), weighted=int(weighted))


def _shifted(sequence: TokenIds, *, weighted: int) -> Datum:
    """Each token predicts the next; the last `weighted` predictions count."""
    weights = np.zeros(len(sequence) - 1, np.float32)
    weights[-weighted:] = 1.0
    return Datum(tokens=sequence[:-1], targets=sequence[1:], weights=weights)


def _draw(random: np.random.Generator, length: int) -> TokenIds:
    return random.integers(3, VOCAB_SIZE, length).astype(np.int32)
