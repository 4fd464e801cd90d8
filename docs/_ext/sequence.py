"""``{sequence}``: a sequence diagram, drawn as SVG from a few lines that also read well as they stand.

The first line names the actors. Each further line is a step::

    worker 1 -> Redis: claim order 42      a message
    worker 1 -x Redis: renew               one that does not arrive
    Redis: lease ends                      something happens there
    worker 1 dies: SIGKILL                 the end of its line
    worker 1 freezes / worker 1 wakes      a broken line between them

Colours are the theme's own, so that it follows light and dark.
"""

import re
import textwrap
from html import escape
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive

WIDTH, TOP, LINE, CHARACTERS = 390, 46, 15, 52
_MESSAGE = re.compile(r"(.+?) -(>|x) (.+?): (.+)")
_NOTE = re.compile(r"(.+?)(?: (dies|freezes|wakes))?(?:: (.+))?")


class Drawing:
    """One diagram under way: what is drawn, and how far down."""

    def __init__(self, actors: list[str]) -> None:
        self.x = {actor: WIDTH * (2 * i + 1) // (2 * len(actors)) for i, actor in enumerate(actors)}
        self.y, self.parts, self.lines = TOP, [], []
        self.since = dict.fromkeys(actors, TOP - 8)
        self.frozen: set[str] = set()
        for actor, x in self.x.items():
            wide = len(actor) * 6.8 + 12
            self.parts.append(
                f'<rect class="qx-actor" x="{x - wide / 2:.0f}" y="8" width="{wide:.0f}" height="26" rx="5"/>'
            )
            self._text(x, 25, actor, "qx-name")

    def step(self, line: str) -> None:
        """Draw one line of the text."""
        if message := _MESSAGE.fullmatch(line):
            self._message(*message.groups())
        else:
            self._note(*_NOTE.fullmatch(line).groups())  # type: ignore[union-attr]

    def _message(self, sender: str, kind: str, receiver: str, words: str) -> None:
        begin, end = self.x[sender], self.x[receiver]
        self._words((begin + end) / 2, words)
        ahead = 1 if end > begin else -1
        if kind == "x":
            end = (begin + end) // 2
            self.parts.append(f'<path class="qx-cross" d="M{end - 5} {self.y - 5}l10 10m0 -10l-10 10"/>')
        else:
            self.parts.append(f'<path class="qx-head" d="M{end} {self.y}l{-8 * ahead} -4.5v9z"/>')
        self.parts.append(f'<path class="qx-arrow" d="M{begin} {self.y}H{end - 4 * ahead}"/>')
        self.y += 14

    def _note(self, actor: str, change: str | None, words: str | None) -> None:
        x = self.x[actor]
        self._words(
            x, f"{actor} {change}: {words}" if change and words else words or f"{actor} {change}", "qx-note"
        )
        if change:
            self._line(actor)
            (self.frozen.discard if change == "wakes" else self.frozen.add)(actor)
        mark = f"M{x - 6} {self.y - 6}l12 12m0 -12l-12 12" if change == "dies" else f"M{x - 6} {self.y}h12"
        self.parts.append(f'<path class="qx-cross" d="{mark}"/>')
        if change == "dies":
            del self.since[actor]
        self.y += 12

    def _line(self, actor: str) -> None:
        """The line of an actor, down to here."""
        if actor in self.since:
            kind = "qx-frozen" if actor in self.frozen else "qx-line"
            self.lines.append(f'<path class="{kind}" d="M{self.x[actor]} {self.since[actor]}V{self.y}"/>')
        self.since[actor] = self.y

    def _words(self, x: float, words: str, kind: str = "qx-words") -> None:
        for line in textwrap.wrap(words, CHARACTERS):
            self.y += LINE
            half = len(line) * 3.1 + 3
            middle = min(max(x, half), WIDTH - half)
            size = f'x="{middle - half:.0f}" y="{self.y - 12}" width="{2 * half:.0f}" height="16"'
            self.parts.append(f'<rect class="qx-back" {size}/>')
            self._text(middle, self.y, line, kind)
        self.y += 9

    def _text(self, x: float, y: float, words: str, kind: str) -> None:
        self.parts.append(f'<text class="{kind}" x="{x:.0f}" y="{y:.0f}">{escape(words)}</text>')

    def svg(self, label: str) -> str:
        """The whole of it."""
        for actor in list(self.since):
            self._line(actor)
        about = f'role="img" aria-label="{escape(label)}" viewBox="0 0 {WIDTH} {self.y + 4}"'
        return f'<svg class="qx-sequence" {about}>{"".join([*self.lines, *self.parts])}</svg>'


class Sequence(Directive):
    """The directive; its argument is the caption."""

    has_content = True
    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Draw it; a line that cannot be read fails the build."""
        head, *steps = [line.strip() for line in self.content if line.strip()]
        drawing = Drawing([actor.strip() for actor in head.split(",")])
        for step in steps:
            drawing.step(step)
        told, shown = f"{self.arguments[0]}: {'; '.join(steps)}", escape(self.arguments[0])
        html = f'<figure class="qx-figure">{drawing.svg(told)}<figcaption>{shown}</figcaption></figure>'
        return [nodes.raw("", html, format="html")]


def setup(app: Any) -> dict[str, bool]:
    """Add the directive."""
    app.add_directive("sequence", Sequence)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
