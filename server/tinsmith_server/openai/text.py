"""Tokens to text, piece by piece: no letter is cut, and nothing of a stop is ever shown."""

from collections.abc import Sequence

from tinsmith_server.openai.vocabulary import Vocabulary

_LONGEST_CUT = 3
"""Bytes that a cut letter of UTF-8 can have; each may show as U+FFFD."""
_CONTEXT = 4
"""Tokens of the prompt that the first sampled ones are read after."""
_PATIENCE = 32
"""Tokens without a whole letter at their end, after which it is not waited for any more."""


class Pieces:
    """A token's text depends on its neighbours, so it is what a few tokens say with it less without."""

    def __init__(self, vocabulary: Vocabulary, before: Sequence[int]) -> None:
        self._vocabulary = vocabulary
        self._begin(list(before[-_CONTEXT:]))

    def _begin(self, window: list[int]) -> None:
        self._window, self._whole = window, len(window)
        self._shown = _certain(self._vocabulary.decode(window))

    def push(self, token: int) -> str:
        """What is certain now; less than the token's own text while a letter of it is missing."""
        self._window.append(token)
        text = self._vocabulary.decode(self._window)
        patient = len(self._window) - self._whole < _PATIENCE
        certain = _certain(text) if patient else len(text)
        piece = text[self._shown : certain]
        self._shown = max(self._shown, certain)
        if self._shown == len(text):
            self._begin(self._window[self._whole :])
        return piece

    def rest(self) -> str:
        """What was held back for letters that did not come."""
        return self._vocabulary.decode(self._window)[self._shown :]


def _certain(text: str) -> int:
    """Letters that no further token can change."""
    cut = len(text) - len(text.rstrip("\ufffd"))
    return len(text) - min(cut, _LONGEST_CUT)


class SampleText:
    """One sample's visible text. The worker ends the sample; where its text ends is decided here."""

    def __init__(self, vocabulary: Vocabulary, prompt: Sequence[int], stops: Sequence[str]) -> None:
        self._vocabulary, self._stops = vocabulary, stops
        self._pieces = Pieces(vocabulary, prompt)
        self._held: list[tuple[str, bool]] = []
        """Text that may be the beginning of a stop, and whether it is a special token's."""
        self._ended = False

    def push(self, token: int) -> str:
        """What may be shown now."""
        if self._ended:
            return ""
        if token in self._vocabulary.special_ids:
            self._hold(self._pieces.rest())
            self._hold(self._vocabulary.text_of(token), special=True)
            self._pieces = Pieces(self._vocabulary, [token])
        else:
            self._hold(self._pieces.push(token))
        return self._release()

    def end(self) -> str:
        """What is left to show when the sample has ended."""
        if self._ended:
            return ""
        self._hold(self._pieces.rest())
        shown = self._release()
        return shown + self._show(sum(len(text) for text, _ in self._held))

    def _hold(self, text: str, *, special: bool = False) -> None:
        if text:
            self._held.append((text, special))

    def _release(self) -> str:
        raw = "".join(text for text, _ in self._held)
        found = [place for stop in self._stops if (place := raw.find(stop)) >= 0]
        if not found:
            return self._show(len(raw) - self._may_begin_a_stop(raw))
        shown = self._show(min(found))
        self._ended, self._held = True, []
        return shown

    def _may_begin_a_stop(self, raw: str) -> int:
        """How many letters at the end could be the start of a stop."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for count in range(min(longest, len(raw)), 0, -1):
            if any(stop.startswith(raw[-count:]) for stop in self._stops):
                return count
        return 0

    def _show(self, count: int) -> str:
        """Take so many letters; special tokens are read for stops but not shown."""
        shown = []
        while count > 0:
            text, special = self._held.pop(0)
            if len(text) > count:
                self._held.insert(0, (text[count:], special))
                text = text[:count]
            count -= len(text)
            if not special:
                shown.append(text)
        return "".join(shown)
