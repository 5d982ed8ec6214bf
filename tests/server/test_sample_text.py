"""Text out of tokens as they come: the same as decoding them together, and nothing of a stop."""

import random

import pytest
from tinsmith_server.openai.text import SampleText
from tinsmith_server.openai.vocabulary import Vocabulary
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE

from tests.models import prepared_smollm2

TEXTS = (
    "Plain words, and 12.5 % of them — twice.\n\n\tdef f(x):  return x",
    "Grüße aus Köln, 東京の夜, שלום, Привет",
    "family 👨‍👩‍👧‍👦 flags 🇩🇪 and 𝄞 clefs",
    "a lone � is a letter too",
)


@pytest.fixture(scope="module")
def smollm2() -> Vocabulary:
    folder = prepared_smollm2()
    names = ("tokenizer.json", "tokenizer_config.json")
    return Vocabulary({name: (folder / name).read_bytes() for name in names})


@pytest.fixture(scope="module")
def llama_like() -> Vocabulary:
    """Words begin with U+2581, letters outside the vocabulary are spelled in bytes."""
    words = [
        "<unk>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "▁the",
        "▁cat",
        "s",
        "▁a",
        "a",
    ]
    backend = Tokenizer(
        BPE({word: index for index, word in enumerate(words)}, [], byte_fallback=True)
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    return Vocabulary({"tokenizer.json": backend.to_str().encode()})


def pushed(
    vocabulary: Vocabulary, tokens: list[int], stops: list[str], prompt: list[int]
) -> list[str]:
    text = SampleText(vocabulary, prompt, stops)
    return [*(text.push(token) for token in tokens), text.end()]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_together_are_the_whole_text(smollm2: Vocabulary, text: str) -> None:
    tokens = smollm2._encode(text, False)
    pieces = pushed(smollm2, tokens, [], [5])
    assert "".join(pieces) == text
    if "�" not in text:
        assert not any("�" in piece for piece in pieces)


def test_random_tokens_come_out_as_they_decode_together(smollm2: Vocabulary) -> None:
    """Also where they are no whole letters: at the end nothing is lost, and nothing comes twice."""
    rng = random.Random(7)
    odd = [index for index in range(3, 400) if "�" in smollm2.text_of(index)]
    for _ in range(60):
        tokens = [
            rng.choice(odd) if rng.random() < 0.6 else rng.randrange(20, 49152) for _ in range(80)
        ]
        assert "".join(pushed(smollm2, tokens, [], [5])) == smollm2.decode(tokens)


def test_a_word_after_a_prompt_keeps_its_space(llama_like: Vocabulary) -> None:
    the, cat, s = (llama_like._tokenizer.token_to_id(word) for word in ("▁the", "▁cat", "s"))
    assert pushed(llama_like, [cat, s], [], [the]) == [" cat", "s", ""]


def test_a_letter_in_bytes_waits_for_its_last(llama_like: Vocabulary) -> None:
    euro = [1 + byte for byte in "€".encode()]
    assert pushed(llama_like, euro, [], [258]) == ["", "", "€", ""]
    assert [llama_like.bytes_of(token) for token in euro] == [b"\xe2", b"\x82", b"\xac"]


def test_special_tokens_end_samples_and_are_not_shown(smollm2: Vocabulary) -> None:
    tokens = smollm2._encode("Done.<|im_end|>", False)
    assert "".join(pushed(smollm2, tokens, [], [5])) == "Done."
    assert "".join(pushed(smollm2, tokens, ["<|im_end|>"], [5])) == "Done."
    assert "".join(pushed(smollm2, tokens, [".<|im_"], [5])) == "Done"


def test_a_stop_is_cut_wherever_tokens_cut_it(smollm2: Vocabulary) -> None:
    text, stop = "one two\n\nQ: three", "\n\nQ:"
    for size in (1, 3):
        letters = [text[at : at + size] for at in range(0, len(text), size)]
        tokens = [token for part in letters for token in smollm2._encode(part, False)]
        assert "".join(pushed(smollm2, tokens, [stop], [5])) == "one two"


def test_the_earliest_of_many_stops_counts(smollm2: Vocabulary) -> None:
    tokens = smollm2._encode("a b c d e f", False)
    stops = [*(f"never{index}" for index in range(50)), " d e", " c d e f", " d"]
    assert "".join(pushed(smollm2, tokens, stops, [5])) == "a b c"


def test_no_piece_ever_shows_the_beginning_of_a_stop_that_comes(smollm2: Vocabulary) -> None:
    """At each moment, what was shown is a beginning of what is shown in the end."""
    rng = random.Random(3)
    for _ in range(40):
        text = "".join(rng.choice("ab \n") for _ in range(40))
        stop = "".join(rng.choice("ab \n") for _ in range(rng.randint(1, 6)))
        tokens = [smollm2._encode(letter, False)[0] for letter in text]
        expected = text.split(stop)[0]
        so_far = ""
        for piece in pushed(smollm2, tokens, [stop], [5]):
            so_far += piece
            assert expected.startswith(so_far)
        assert so_far == expected


def test_what_only_looked_like_a_stop_comes_in_the_end(smollm2: Vocabulary) -> None:
    tokens = smollm2._encode("wait\nQ", False)
    assert "".join(pushed(smollm2, tokens, ["\nQ:"], [5])) == "wait\nQ"


def test_bytes_of_tokens_spell_the_text(smollm2: Vocabulary) -> None:
    for text in TEXTS:
        parts = [smollm2.bytes_of(token) or b"" for token in smollm2._encode(text, False)]
        assert b"".join(parts) == text.encode()
