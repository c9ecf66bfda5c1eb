"""One request on its way through the engine, as the host knows it."""

from __future__ import annotations

from questtrain.inference.engine.requests import Alternative, Delta, Finish, Request, TokenInfo
from questtrain.inference.engine.text_stream import TextStream
from questtrain.inference.engine.token_texts import TokenTexts

Top = list[tuple[int, float]]
"""The most likely tokens of a place and their log-probabilities."""


class Sequence:
    """A request, what the device has been asked to do for it, and what came back.

    ``slot``: where its keys and values are, None without a place; ``read``: how many tokens of its
    prompt the cache has; ``asked``: how many tokens of its answer the device has been asked for, up
    to ``limit``. What comes back is known later: by then more may have been asked for, and is
    thrown away once ``is_over``.
    """

    def __init__(self, request: Request, context: int, texts: TokenTexts, end: int) -> None:
        self.request, self.sampling = request, request.sampling
        self.limit = min(self.sampling.max_tokens, context - len(request.prompt))
        self.slot: int | None = None
        self.read = self.asked = 0
        self.is_over = False
        self._texts, self._end = texts, end
        self._stream = TextStream(self.sampling.stop)
        self._answered = 0
        self._told: list[tuple[int, int, TokenInfo]] = []  # where its text begins and ends
        self._prompt: list[TokenInfo] = []

    @property
    def unread(self) -> int:
        """Tokens of the prompt that the cache lacks."""
        return len(self.request.prompt) - self.read

    def told_prompt(self, tokens: list[int], logprobs: list[float], tops: list[Top]) -> None:
        """What is known of the prompt's next tokens, the first of which is its second."""
        if not self._prompt:
            self._prompt.append(self._info(self.request.prompt[0], None, [], is_first=False))
        for index, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True)):
            top, is_first = tops[index] if tops else [], len(self._prompt) == 1
            self._prompt.append(self._info(token, logprob, top, is_first))

    def take(self, token: int, logprob: float | None, top: Top) -> Delta:
        """What the answer's next token makes known."""
        self._answered += 1
        if token == self._end:
            text = self._stream.add(b"", is_last=True)
            self._tell(token, logprob, top, is_first=False)
            return self._delta(text, 1, "stop")
        is_first = self._answered == 1 and len(self.request.prompt) == 1
        data = (self._texts.bytes_of_first if is_first else self._texts.bytes_of)(token)
        begin, is_last = self._stream.length, self._answered == self.limit
        text = self._stream.add(data or b"", is_last)
        self._tell(token, logprob, top, is_first, begin)
        finish: Finish | None = "length" if is_last else None
        return self._delta(text, 1, "stop" if self._stream.stopped else finish)

    def _tell(
        self, token: int, logprob: float | None, top: Top, is_first: bool, begin: int | None = None
    ) -> None:
        """Keep what is to be told of a token, whose text has been added, until that is given out.
        ``begin``: where its text does; None where it has none."""
        if self.sampling.logprobs is not None:
            end = self._stream.length + self._stream.is_within_character
            told = self._info(token, logprob, top, is_first)
            self._told.append((end if begin is None else begin, end, told))

    def end_of_prompt(self) -> Delta:
        """Of a request for no tokens."""
        return self._delta("", 0, "length")

    def fail(self, error: str) -> Delta:
        self.is_over = True
        return Delta(self.request.id, finish="error", error=error)

    def _delta(self, text: str, generated: int, finish: Finish | None) -> Delta:
        self.is_over = finish is not None
        tokens = self._told_with_text() if self._told else ()
        prompt, self._prompt = tuple(self._prompt), []
        return Delta(self.request.id, text, generated, tokens, prompt, finish)

    def _told_with_text(self) -> tuple[TokenInfo, ...]:
        """Of those tokens whose text was given out."""
        given, stopped = self._stream.given, self._stream.stopped
        ready = [
            begin < given if stopped else end <= given or self.is_over
            for begin, end, _ in self._told
        ]
        count = ready.index(False) if False in ready else len(ready)
        tokens = tuple(info for _, _, info in self._told[:count])
        del self._told[:count]
        return tokens

    def _info(self, token: int, logprob: float | None, top: Top, is_first: bool) -> TokenInfo:
        """Of a token; ``is_first`` where no text is before it."""
        alternatives = []
        for other, of_other in top:
            text, data = self._text(other, is_first)
            alternatives.append(Alternative(other, text, of_other, data))
        text, data = self._text(token, is_first)
        return TokenInfo(token, text, data, logprob, tuple(alternatives))

    def _text(self, token: int, is_first: bool) -> tuple[str, bytes | None]:
        data = self._texts.bytes_of_first(token) if is_first else self._texts.bytes_of(token)
        return (data or b"").decode(errors="replace"), data
