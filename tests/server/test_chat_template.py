"""Chat templates rendered without transformers, against transformers' own apply_chat_template."""

import json
from dataclasses import dataclass
from typing import Any

import jinja2
import pytest
from tinsmith.protocol.errors import BadRequest
from tinsmith_server.openai.vocabulary import Vocabulary
from transformers import AutoTokenizer

from tests.models import prepared_smollm2

# In the manner of Gemma: roles that must alternate, the system's words in the first turn.
GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first = messages[0]['content'] + '\n\n' -%}{%- set rest = messages[1:] -%}
{%- else -%}
    {%- set first = '' -%}{%- set rest = messages -%}
{%- endif -%}
{%- for message in rest -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('Conversation roles must alternate user/assistant') }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') + message['content'] | trim }}
    {{- '<end_of_turn>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}
"""
# In the manner of Qwen: tools, calls of them and their answers, thoughts, a date, namespaces, breaks.
QWEN = """{%- if tools %}
<|im_start|>system
Today is {{ strftime_now('%Y-%m') }}. Tools:
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
<|im_end|>
{%- endif %}
{%- set ns = namespace(last=messages | length - 1, asked=false) %}
{%- for message in messages %}
    {%- if message.role == 'system' and tools %}{% continue %}{% endif %}
<|im_start|>{{ message.role }}
    {%- if message.reasoning_content is defined %}
<think>{{ message.reasoning_content }}</think>
    {%- endif %}
    {%- if message.content is defined %}
{{ message.content }}
    {%- endif %}
    {%- for call in message.tool_calls or [] %}
<tool_call>{"name": {{ call.function.name | tojson }}, "arguments": {{ call.function.arguments | tojson(indent=1) }}}</tool_call>
    {%- endfor %}
    {%- generation %}<|im_end|>{% endgeneration %}

    {%- set ns.asked = ns.asked or message.role == 'user' %}
{%- endfor %}
{%- if not ns.asked %}{{ raise_exception('No user query found in messages.') }}{% endif %}
{%- if add_generation_prompt %}
<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}
{%- endif %}
"""
TEMPLATES = {"smollm2": None, "gemma": GEMMA, "qwen": QWEN}
ASK = {"role": "user", "content": "What is 2+2? <b>Ünï</b>  "}
TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "a & b < c", "parameters": {"type": "object"}},
}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": "é"}}}
CHATS: dict[str, list[dict[str, Any]]] = {
    "one question": [ASK],
    "a system and an answer": [
        {"role": "system", "content": "Be brief."},
        ASK,
        {"role": "assistant", "content": " 4 \n"},
        {"role": "user", "content": "Sure?"},
    ],
    "a tool's answer": [
        ASK,
        {"role": "assistant", "content": None, "reasoning": "hm", "tool_calls": [CALL]},
        {"role": "tool", "content": "4"},
    ],
}


@dataclass(frozen=True)
class Both:
    """One folder, read by transformers and by us."""

    name: str
    theirs: Any
    ours: Vocabulary

    def render(self, chat: list[dict[str, Any]], **options: Any) -> str:
        given = {"tools": None, "add_generation_prompt": True, "continue_final_message": False}
        variables = options.pop("variables", {})
        return self.ours.chat(chat, **(given | options), variables=variables)


@pytest.fixture(scope="module", params=list(TEMPLATES))
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    source = prepared_smollm2()
    template = TEMPLATES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    ours = Vocabulary({path.name: path.read_bytes() for path in folder.iterdir()})
    return Both(request.param, AutoTokenizer.from_pretrained(folder), ours)


@pytest.mark.parametrize("tools", [None, [TOOL]], ids=["no tools", "tools"])
@pytest.mark.parametrize("prompted", [True, False])
@pytest.mark.parametrize("name", list(CHATS))
def test_a_chat_reads_as_in_transformers(
    both: Both, name: str, prompted: bool, tools: list[Any] | None
) -> None:
    asked = {"tools": tools, "add_generation_prompt": prompted}
    if name == "a tool's answer" and both.name != "qwen":
        with pytest.raises((jinja2.TemplateError, TypeError)):  # these templates take no tools
            both.theirs.apply_chat_template(CHATS[name], tokenize=False, **asked)
        with pytest.raises(BadRequest, match="messages: the model's chat template refuses"):
            both.render(CHATS[name], **asked)
        return
    expected = both.theirs.apply_chat_template(CHATS[name], tokenize=False, **asked)
    assert both.render(CHATS[name], **asked) == expected


def test_ids_of_a_chat_are_those_of_transformers(both: Both) -> None:
    chat = CHATS["a system and an answer"]
    expected = both.theirs.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    found = both.ours._encode(both.render(chat), False)
    assert found == expected


def test_variables_reach_the_template(both: Both) -> None:
    variables = {"enable_thinking": False, "bos_token": "<other>"}
    expected = both.theirs.apply_chat_template(
        [ASK], tokenize=False, add_generation_prompt=True, **variables
    )
    assert both.render([ASK], variables=variables) == expected


def test_the_last_message_is_continued_as_in_transformers(both: Both) -> None:
    chat = [ASK, {"role": "assistant", "content": "It is "}]
    expected = both.theirs.apply_chat_template(chat, tokenize=False, continue_final_message=True)
    found = both.render(chat, add_generation_prompt=False, continue_final_message=True)
    assert found == expected


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append('x') }}",
        "{{ dict.__init__.__globals__ }}",
        "{{ strftime_now.__globals__.os }}",
    ],
)
def test_a_template_does_not_reach_python(template: str) -> None:
    source = prepared_smollm2()
    files = {"tokenizer.json": (source / "tokenizer.json").read_bytes()}
    files["tokenizer_config.json"] = json.dumps({"chat_template": template}).encode()
    with pytest.raises(BadRequest):
        Vocabulary(files).chat(
            [ASK],
            tools=None,
            add_generation_prompt=True,
            continue_final_message=False,
            variables={},
        )
