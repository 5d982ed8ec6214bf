"""Chats to text by a model's own Jinja template, with transformers' meaning of it and without transformers.

A template comes with a model's files, so it runs in a sandbox and sees plain JSON values only.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tinsmith.protocol.errors import BadRequest

_MARK = "TINSMITH_ENDS_HERE "
_REASONING = ("reasoning_content", "thinking", "reasoning")
Messages = Sequence[Mapping[str, Any]]


class _Generation(Extension):
    """`{% generation %}` marks what the assistant said, for those who train on it. Here it is its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _NewDict:
    """`dict` without the attributes of a class."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)


class ChatTemplate:
    def __init__(self, source: str) -> None:
        self._source = source
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise BadRequest(
                f"model: its chat template does not parse ({error.message})."
            ) from None

    def render(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        continue_final_message: bool,
        variables: Mapping[str, Any],
    ) -> str:
        """Raises BadRequest with what the template says against these messages."""
        chat: list[dict[str, Any]] = [_as_templates_read(message) for message in messages]
        if continue_final_message:
            chat[-1]["content"] = _continued(chat[-1]) + _MARK
        try:
            text = self._template.render(
                **{"documents": None, **variables},
                messages=chat,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            said = str(error)[:300]
            raise BadRequest(f"messages: the model's chat template refuses them: {said}") from None
        return _cut_at_mark(text) if continue_final_message else text


def _as_templates_read(message: Mapping[str, Any]) -> dict[str, Any]:
    """Without nulls, which templates would write out, and with reasoning under both names they read."""
    given = {name: value for name, value in message.items() if value is not None}
    reasoning = next((given[name] for name in _REASONING if name in given), None)
    if reasoning is not None:
        given = {"thinking": reasoning} | given | {"reasoning_content": reasoning}
    return given


def _continued(message: Mapping[str, Any]) -> str:
    if not isinstance(message.get("content"), str):
        raise BadRequest("continue_final_message: the last message has no text to continue.")
    return str(message["content"])


def _cut_at_mark(text: str) -> str:
    """Up to where the last message ends; a template that strips it has stripped the mark's space too."""
    place = text.rfind(_MARK.strip())
    if place < 0:
        raise BadRequest("continue_final_message: this chat template drops the last message.")
    return text[:place] if text.startswith(_MARK, place) else text[:place].rstrip()


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(raise_exception=_refuse, strftime_now=_strftime_now, dict=_NewDict())
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON; jinja's own filter writes HTML's signs as escapes."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
