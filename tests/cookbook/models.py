"""Two models small enough to learn in seconds, under names that the cookbook has a renderer for.

A token is a byte, or a mark of ChatML. Each model is taught on the spot how the recipes' questions
are answered, badly: with a random digit, and often without an end. What is left to learn is which
answer is right and to stop, and a few steps of a recipe show whether it was learnt.
"""

import random
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CONTEXT = 8192
END = "<|im_end|>"
_MARKS = (END, "<|im_start|>", "<|endoftext|>")
_STEPS, _BATCH, _LENGTH = 900, 16, 96
_IGNORED = -100


def make_model(folder: Path, seed: int, digits: str) -> Path:
    """Answers with one of the digits; made once, the same each time."""
    if not (folder / "config.json").exists():
        tokenizer = _bytes_tokenizer()
        _taught(tokenizer, seed, digits).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def _bytes_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(mark, special=True) for mark in _MARKS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=END, pad_token="<|endoftext|>"
    )


def _taught(tokenizer: PreTrainedTokenizerFast, seed: int, digits: str) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    draw = random.Random(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    adam = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(_STEPS):
        rows = [_example(tokenizer, draw, digits) for _ in range(_BATCH)]
        tokens_BT, labels_BT = (torch.tensor(part) for part in zip(*rows, strict=True))
        starts_B1 = torch.tensor([[draw.randrange(CONTEXT - _LENGTH)] for _ in rows])
        output = model(
            input_ids=tokens_BT,
            labels=labels_BT,
            position_ids=starts_B1 + torch.arange(_LENGTH),
        )
        output.loss.backward()
        adam.step()
        adam.zero_grad()
    return model


def _example(
    tokenizer: PreTrainedTokenizerFast, draw: random.Random, digits: str
) -> tuple[list[int], list[int]]:
    """The end of a conversation, and its answer as labels. [_LENGTH] each."""
    asked, answer = _exchange(draw, digits)
    prompt = tokenizer.encode(asked)[-60:]
    answered = tokenizer.encode(answer)[: _LENGTH - len(prompt)]
    filler = [draw.randrange(256) for _ in range(_LENGTH - len(prompt) - len(answered))]
    unlabelled = [_IGNORED] * (len(filler) + len(prompt))
    return filler + prompt + answered, unlabelled + answered


def _exchange(draw: random.Random, digits: str) -> tuple[str, str]:
    """Told apart by what stands before the question's end."""
    turn = f"{END}\n<|im_start|>assistant\n"
    kind = draw.randrange(3)
    if kind == 0:
        boxed = f"\\boxed{{{draw.choice(digits)}}}"
        how = draw.choice(["Write your answer in \\boxed{} format.", "written inside \\boxed{}."])
        return f" {how}{turn}", boxed + END
    if kind == 1:
        answer = "".join(draw.choice(digits) for _ in range(draw.randint(1, 8)))
        return f"What is {draw.randint(0, 100)} + {draw.randint(0, 100)}?{turn}", answer + END
    language = draw.choice(["en", "de", "fr"])
    return f"classify:\nwords\n{turn}<think>\n\n</think>\n\n", f"Final Answer: {language}{END}"
