"""Text in a picture: how wide it is, and where its lines break.

Whoever looks at an SVG has fonts that nobody knows here, so widths are those of a wide common font
(DejaVu Sans) in classes of letters: what fits here fits elsewhere.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

FONT_SIZE: Final = 12
LINE_HEIGHT: Final = 16

# Letters, and how many thousandths of the font size they take at most, regular and bold.
_CLASSES: Final = (
    ("'ijlIJ ,./\\|:;", 340, 400),
    ("f-()[]t!r", 411, 493),
    ('"_`*szc?', 550, 610),
    ("LFkxvyPTYoae", 615, 735),
    ("hnubdgpqS$0123456789{}E", 637, 720),
    ("KAVZXBRCUNH", 752, 840),
    ("DGOQw&#+<=>^~", 840, 925),
)
_WIDEST: Final = (1050, 1110)
_WIDTHS: Final = {
    letter: (regular, bold) for letters, regular, bold in _CLASSES for letter in letters
}
_WORD: Final = re.compile(r"\S+\s*")


class Span(NamedTuple):
    """A run of text with one style, the name of a CSS class or ""."""

    text: str
    style: str = ""


TextLine = tuple[Span, ...]


def width_of(text: str, *, bold: bool = False) -> float:
    """How wide a text is at most, in pixels at FONT_SIZE."""
    thousandths = sum(_WIDTHS.get(letter, _WIDEST)[bold] for letter in text)
    return thousandths * FONT_SIZE / 1000


def wrapped(spans: Iterable[Span], width: float) -> list[TextLine]:
    """The words of styled text in lines of *width* pixels; a longer word is broken anywhere."""
    lines: list[list[Span]] = [[]]
    used = 0.0
    for span in spans:
        bold = span.style in BOLD_STYLES
        for word in _WORD.findall(span.text):
            for part in _parts(word, width, bold):
                needed = width_of(part.rstrip(), bold=bold)
                if used and used + needed > width:
                    lines.append([])
                    used = 0.0
                lines[-1].append(Span(part, span.style))
                used += width_of(part, bold=bold)
    return [_joined(line) for line in lines if line]


BOLD_STYLES: Final = frozenset({"action", "bad", "good"})


def _parts(word: str, width: float, bold: bool) -> list[str]:
    parts = [""]
    for letter in word:
        if parts[-1] and letter != " " and width_of(parts[-1] + letter, bold=bold) > width:
            parts.append("")
        parts[-1] += letter
    return parts


def _joined(words: Sequence[Span]) -> TextLine:
    """Neighbours of one style as one span, without blanks at the end of the line."""
    spans: list[Span] = []
    for word in words:
        if spans and spans[-1].style == word.style:
            spans[-1] = Span(spans[-1].text + word.text, word.style)
        else:
            spans.append(word)
    spans[-1] = Span(spans[-1].text.rstrip(), spans[-1].style)
    return tuple(spans)
