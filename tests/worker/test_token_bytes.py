"""What tokens spell, in every tokenizer family, and where two families' tokens meet."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tinsmith_worker.engine.alignment import Stretch, align
from tinsmith_worker.engine.token_bytes import byte_table
from tinsmith_worker.engine.values import InvalidInput
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE, WordLevel
from transformers import TokenizersBackend

CORPUS = [
    "the cat sat on the mat, naïve façade 12345 ☃ 日本語",
    "hello  world\n\tand more words",
] * 4
TEXTS = ["the hat", "naïve ☃☃ 日本", " two  spaces", "tab\tand\nline", "\U0001f600 emoji", "12 345"]


def byte_level(size: int = 400) -> Any:
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=["<|end|>"]
    )
    backend.train_from_iterator(CORPUS, trainer)
    return TokenizersBackend(tokenizer_object=backend, eos_token="<|end|>")


def sentence_piece() -> Any:
    """As Gemma has it: spaces become U+2581, what has no piece becomes bytes."""
    letters = [chr(code) for code in range(33, 127)] + ["\u2581", "\u2581the", "at", "\u2581c"]
    names = [
        "<unk>",
        "<eos>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *letters,
        "\u2581\u2581",
    ]
    merges = [("a", "t"), ("\u2581", "c"), ("\u2581", "\u2581")]
    vocabulary = {name: index for index, name in enumerate(names)}
    backend = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens(["<eos>"])
    return TokenizersBackend(tokenizer_object=backend, eos_token="<eos>")


def tiktoken_encoding() -> Any:
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {bytes([byte]): byte for byte in range(256)} | {
        b" t": 256,
        b"he": 257,
        b"\xe2\x98": 258,
    }
    return tiktoken.Encoding(
        "small",
        pat_str=r"\s?\S+|\s+",
        mergeable_ranks=ranks,
        special_tokens={"<|end|>": 260},
    )


FAMILIES = {
    "byte level": byte_level(),
    "sentencepiece": sentence_piece(),
    "tiktoken": tiktoken_encoding(),
}


def encode(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer.encode(text)
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", TEXTS)
def test_tokens_spell_the_bytes_of_their_text(family: str, text: str) -> None:
    tokenizer = FAMILIES[family]
    table = byte_table(tokenizer)
    assert table is not None
    assert b"".join(table[token] for token in encode(tokenizer, text)) == text.encode()


def test_added_tokens_spell_themselves() -> None:
    table = byte_table(FAMILIES["byte level"])
    assert table is not None
    assert table[FAMILIES["byte level"].eos_token_id] == b"<|end|>"
    table = byte_table(FAMILIES["tiktoken"])
    assert table is not None
    assert (table[260], table[259]) == (b"<|end|>", b"")


def test_words_do_not_say_what_stood_between_them() -> None:
    backend = Tokenizer(WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    assert byte_table(TokenizersBackend(tokenizer_object=backend, unk_token="<unk>")) is None
    assert byte_table(None) is None


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(alphabet="ab tthe☃é\n", min_size=1, max_size=30), prompt=st.text("xy ", max_size=5)
)
def test_groups_spell_the_same_and_miss_nothing(text: str, prompt: str) -> None:
    student, teacher = FAMILIES["byte level"], FAMILIES["sentencepiece"]
    ours, theirs = byte_table(student), byte_table(teacher)
    assert ours is not None
    assert theirs is not None
    answer = [ours[token] for token in encode(student, text)]
    whole = [theirs[token] for token in (*encode(teacher, prompt), *encode(teacher, text))]
    groups = align(answer, whole, "data[0]")
    covered = b""
    for one in groups:
        spelled = b"".join(answer[one.s0 : one.s1])
        assert spelled == b"".join(whole[one.t0 : one.t1])
        covered += spelled
    assert covered == text.encode()


def test_a_space_at_the_beginning_is_a_habit() -> None:
    expected = [Stretch(0, 1, 1, 2), Stretch(1, 2, 2, 3)]
    assert align([b"hello", b" you"], [b"Q:", b" hello", b" you"], "data[0]") == expected
    assert align([b" hello", b" you"], [b"Q:", b"hello", b" you"], "data[0]") == expected


def test_a_token_over_the_edge_is_left_out() -> None:
    found = align([b"b", b"c", b"d"], [b"x", b"ab", b"c", b"d"], "data[0]")
    assert found == [Stretch(1, 2, 2, 3), Stretch(2, 3, 3, 4)]


def test_other_texts_are_refused() -> None:
    with pytest.raises(InvalidInput, match="does not end with"):
        align([b"abc"], [b"abd"], "data[0]")
