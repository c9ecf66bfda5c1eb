"""A chat as a prompt: the tokenizer's chat template, in Jinja, and what its text means in tokens.

Templates spell special tokens (``<|user|>``). What a message says never is one, however it is
spelled: a mark stands for every such spelling when the template sees the message, and the spelling
again in the text that is encoded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from questtrain.data import Tokenizer
from questtrain.errors import UserError
from questtrain.inference.serve.bodies import Message
from questtrain.inference.serve.errors import ApiError
from questtrain.inference.serve.prompts import Encoder

MARK, ZERO = "\ufdda", 0xFDD0
"""Code points that Unicode keeps out of all text (noncharacters): what stands for a spelling is its
number between two marks, in digits from `ZERO` on."""

_MARKED = re.compile(f"{MARK}([^{MARK}]*){MARK}")
_MARKS = re.compile("[\ufdd0-\ufdda]")

FILE, CONFIG = "chat_template.jinja", "tokenizer_config.json"


class ChatTemplate:
    """A template that `chat_ids` fills in with the messages of a chat."""

    def __init__(self, source: str, tokenizer: Tokenizer, where: Path) -> None:
        """UserError for what is no template."""
        special = tokenizer.special_tokens()
        self._special = special
        spelled = "|".join(map(re.escape, sorted(special, key=len, reverse=True)))
        self._spelling = re.compile(f"({spelled})")
        bos = next(name for name, token in special.items() if token == tokenizer.bos_id)
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        # A document ends where the next one begins: there is no EOS but BOS.
        environment.globals |= {"bos_token": bos, "eos_token": bos}
        environment.globals |= {"raise_exception": _raise, "strftime_now": _now}
        try:
            self._template: Template = environment.from_string(source)
        except TemplateError as error:
            line = f" (its line {error.lineno})" if isinstance(error, TemplateSyntaxError) else ""
            raise UserError(f"{where} holds no chat template: {error}{line}") from error

    @classmethod
    def find(cls, tokenizer: Tokenizer, file: str | None) -> ChatTemplate | None:
        """That of ``file``, or of the files beside the tokenizer; None where there is none."""
        path = Path(file).expanduser() if file else tokenizer.path.parent / FILE
        if file or path.is_file():
            return cls(_text(path), tokenizer, path)
        path = tokenizer.path.parent / CONFIG
        source = _configured(path) if path.is_file() else None
        return None if source is None else cls(source, tokenizer, path)

    async def chat_ids(self, messages: Sequence[Message], encoder: Encoder) -> list[int]:
        """The chat's tokens, BOS first, up to where the assistant's next message begins; ApiError
        where the template does not take it."""
        chat = [{"role": each.role, "content": self._marked(each.text)} for each in messages]
        try:
            text = self._template.render(messages=chat, add_generation_prompt=True, tools=None)
        except Exception as error:  # whatever the template's own code comes to
            raise ApiError(400, f"the chat template refuses this: {error}", "messages") from error
        ids: list[int] = []
        for part in filter(None, self._spelling.split(text)):
            token = self._special.get(part)
            ids += [token] if token is not None else await encoder.text_ids(self._unmarked(part))
        bos = encoder.tokenizer.bos_id
        return ids if ids[:1] == [bos] else [bos, *ids]

    def _marked(self, text: str) -> str:
        """What spells a special token in a message, made to spell none."""
        names = list(self._special)

        def mark(found: re.Match[str]) -> str:
            number = "".join(chr(ZERO + int(digit)) for digit in str(names.index(found[0])))
            return f"{MARK}{number}{MARK}"

        return self._spelling.sub(mark, _MARKS.sub("", text))

    def _unmarked(self, text: str) -> str:
        names = list(self._special)

        def spell(found: re.Match[str]) -> str:
            number = "".join(str(ord(digit) - ZERO) for digit in found[1])
            return names[int(number)] if number.isdecimal() else ""

        return _MARKED.sub(spell, text)


def _configured(path: Path) -> str | None:
    """``chat_template`` of tokenizer_config.json: a template, or several by name."""
    try:
        template = json.loads(_text(path)).get("chat_template")
        if isinstance(template, list):
            named = {each["name"]: each["template"] for each in template}
            template = named.get("default")
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{path} holds no chat template: {error}") from error
    if not isinstance(template, str | None):
        raise UserError(f"{path}: chat_template must be text.")
    return template


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UserError(f"the chat template {path} cannot be read: {reason}.") from error


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
