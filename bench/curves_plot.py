"""Accuracy over latency as a picture of its own: one panel per network.

1. It stands alone: its colours are in it, and follow light and dark.
2. Lines differ in form and dash, not in colour alone; a title and a description tell
   what is seen.
3. Equal values give equal bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import escape

from edgeml.report.plots import Scale

WIDTH, HEIGHT = 380, 270
"""Of one panel, in pixels."""
ACROSS = 2
LEFT, RIGHT, TOP, BOTTOM = 52.0, 16.0, 34.0, 44.0
LOWEST = 8.0
"""Points below the best that are still shown; what is lower lies on the edge."""
STYLE = """
text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",Arial,
sans-serif;fill:#555}
.title{font-weight:600;fill:#1a1a1a}.axis{stroke:#777}.grid{stroke:#ddd}
.l0{stroke:#8a4b08;fill:none;stroke-width:2;stroke-dasharray:5 3}
.l1{stroke:#0b5cad;fill:none;stroke-width:2}
.d0{fill:#8a4b08}.d1{fill:#0b5cad}.n0{fill:#8a4b08}.n1{fill:#0b5cad}
@media (prefers-color-scheme:dark){text{fill:#aaa}.title{fill:#eee}
.axis{stroke:#888}.grid{stroke:#3a3a3a}.l0{stroke:#e0a35c}.l1{stroke:#6cb0f0}
.d0,.n0{fill:#e0a35c}.d1,.n1{fill:#6cb0f0}}
"""


@dataclass(frozen=True)
class Line:
    """Points (milliseconds, percent) in order, and what each is called."""

    name: str
    points: tuple[tuple[float, float], ...]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Panel:
    """One network; its lines share the axes."""

    title: str
    lines: tuple[Line, ...]


def drawn(panels: Sequence[Panel]) -> str:
    """All panels as one SVG document."""
    down = -(-len(panels) // ACROSS)
    width, height = WIDTH * min(ACROSS, len(panels)), HEIGHT * down + 26
    names = [line.name for line in panels[0].lines] if panels else []
    told = "; ".join(
        f"{panel.title}, {line.name}: "
        + ", ".join(
            f"{label} % pruned {y:.2f} % at {x:.3g} ms"
            for label, (x, y) in zip(line.labels, line.points, strict=True)
        )
        for panel in panels
        for line in panel.lines
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'role="img"><title>Accuracy over latency as networks are pruned</title>'
        f"<desc>{escape(told)}</desc><style>{STYLE}</style>",
        *(_key(place, name) for place, name in enumerate(names)),
    ]
    for place, panel in enumerate(panels):
        x, y = place % ACROSS * WIDTH, place // ACROSS * HEIGHT + 26
        parts.append(f'<g transform="translate({x} {y})">{_panel(panel)}</g>')
    return "".join(parts) + "</svg>\n"


def _key(place: int, name: str) -> str:
    x = LEFT + 150 * place
    return (
        f'<line class="l{place}" x1="{x}" x2="{x + 28}" y1="16" y2="16"/>'
        f"{_mark(place, x + 14, 16)}"
        f'<text x="{x + 36}" y="20">{escape(name)}</text>'
    )


def _panel(panel: Panel) -> str:
    every = [point for line in panel.lines for point in line.points]
    times, scores = [x for x, _ in every], [y for _, y in every]
    best = max(scores)
    low = max(min(scores), best - LOWEST)
    span = max(best - low, 0.2)
    x = Scale(min(times) / 1.12, max(times) * 1.12, LEFT, WIDTH - RIGHT, log=True)
    y = Scale(low - 0.12 * span, best + 0.14 * span, HEIGHT - BOTTOM, TOP)
    parts = [f'<text class="title" x="{LEFT}" y="18">{escape(panel.title)}</text>']
    parts += [
        f'<line class="grid" x1="{x.start}" x2="{x.end}" y1="{y(tick):.1f}" '
        f'y2="{y(tick):.1f}"/><text x="{x.start - 6}" y="{y(tick) + 4:.1f}" '
        f'text-anchor="end">{tick:g}</text>'
        for tick in y.ticks(4)
    ]
    parts.append(
        f'<line class="axis" x1="{x.start}" x2="{x.end}" y1="{y.start}" '
        f'y2="{y.start}"/>'
    )
    parts += [
        f'<line class="axis" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{y.start}" '
        f'y2="{y.start + 4}"/><text x="{x(tick):.1f}" y="{y.start + 17}" '
        f'text-anchor="middle">{tick:.3g}</text>'
        for tick in x.ticks(4)
    ]
    parts.append(
        f'<text x="{x.end}" y="{y.start + 34}" text-anchor="end">ms of one image →'
        f'</text><text x="{x.start}" y="{y.start + 34}">↑ top1 %</text>'
    )
    parts += [_line(place, line, x, y) for place, line in enumerate(panel.lines)]
    return "".join(parts)


def _line(place: int, line: Line, x: Scale, y: Scale) -> str:
    placed = [(x(at), y(max(score, y.low))) for at, score in line.points]
    path = " ".join(f"{at:.1f},{score:.1f}" for at, score in placed)
    parts = [f'<polyline class="l{place}" points="{path}"/>']
    beside = 15 if place == 0 else -8
    for (at, score), label in zip(placed, line.labels, strict=True):
        parts.append(_mark(place, at, score))
        parts.append(
            f'<text class="n{place}" x="{at:.1f}" y="{score + beside:.1f}" '
            f'text-anchor="middle">{escape(label)}</text>'
        )
    return "".join(parts)


def _mark(place: int, x: float, y: float) -> str:
    if place == 0:
        return (
            f'<rect class="d0" x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" '
            'height="7"/>'
        )
    return f'<circle class="d{place}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
