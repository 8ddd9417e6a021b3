"""Inline SVG for the report: accuracy over latency, and latency distributions.

1. Colours come from the page's style sheet by class, so plots follow light and dark.
2. Every plot carries a title and a description for those who do not see it.
3. Coordinates have one decimal: equal values give equal bytes.
4. Marks differ in form, not in colour alone: what may not ship is hollow.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

LETTER, LINE = 6.6, 13.0
"""Width and height of a character at 12 px, for keeping labels apart."""
BUBBLE_MAX, BUBBLE_MIN = 17.0, 4.5
OFF_SCALE = 6.0
"""Points that lose more than so many times the allowed drop sit on the edge."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Point:
    """A measured candidate; ``number`` is its row in the table."""

    number: int
    name: str
    status: str
    latency_ms: float
    score: float
    size_bytes: int


@dataclass(frozen=True)
class Curve:
    """Quantiles 0, 5, … 100 % of one artifact's latency, in milliseconds."""

    name: str
    style: str
    quantiles_ms: tuple[float, ...]


@dataclass(frozen=True)
class Bounds:
    """What the plot of candidates draws beside them; None: no such limit."""

    oracle: float
    worst_score: float | None
    max_latency_ms: float | None
    better: str


@dataclass(frozen=True)
class Scale:
    """Maps values to pixels, in logarithms where ``log``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Pixel of a value."""
        low, high, at = (
            map(math.log, (self.low, self.high, value)) if self.log
            else (self.low, self.high, value)
        )  # fmt: skip
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self, wanted: int) -> list[float]:
        """Round values inside, about so many."""
        if self.log and self.high / self.low > 8:
            first = math.floor(math.log10(self.low))
            last = math.ceil(math.log10(self.high))
            marks = (1, 2, 5) if self.high / self.low < 200 else (1,)
            found = [m * 10.0**n for n in range(first, last + 1) for m in marks]
        else:
            step = _step((self.high - self.low) / wanted)
            first = math.ceil(self.low / step)
            found = [step * (first + n) for n in range(4 * wanted + 4)]
        return [one for one in found if self.low <= one <= self.high]


def candidates_plot(
    points: Sequence[Point],
    bounds: Bounds,
    score_text: Callable[[float], str],
    *,
    ident: str,
    width: int,
    height: int,
    named: Collection[int] | None = None,
) -> Markup:
    """Score over latency (logarithmic), one bubble per candidate, area as size.

    ``named``: whose numbers are written beside the bubbles; None: all.
    """
    left, right, top, bottom = 52.0, width - 14.0, 26.0, height - 40.0
    x = _latency_scale(points, bounds, left, right)
    y, cut = _score_scale(points, bounds, bottom, top)
    parts = [_grid(x, y, score_text, wanted_x=max(3, width // 110))]
    corners = _front(points, x, y, bounds.better, cut)
    scale = BUBBLE_MAX / math.sqrt(max(one.size_bytes for one in points) or 1)
    placed = [
        (one, x(one.latency_ms), y(_clip(one.score, y)), _radius(one, scale))
        for one in points
    ]
    placed.sort(key=lambda item: (item[0].status == "chosen", -item[3]))
    labels: dict[int, str] = {}
    taken = [_box(at_x, at_y, radius * 0.8) for _, at_x, at_y, radius in placed]
    taken += [
        (min(a[0], b[0]) - 2, min(a[1], b[1]) - 2, max(a[0], b[0]), max(a[1], b[1]))
        for a, b in pairwise(corners)
    ]
    parts += _limits(x, y, bounds, score_text, taken)
    parts.append(f'<polyline class="front" points="{_path(corners)}"/>')
    for one, at_x, at_y, radius in placed:
        beyond = _beyond(one.score, cut, bounds.better)
        parts.append(_bubble(one, at_x, at_y, radius, beyond))
        label = str(one.number)
        if one.status == "chosen":
            label += f" {one.name}"
        labels[one.number] = f"{label}: {score_text(one.score)}" if beyond else label
    if named is not None:
        placed = [item for item in placed if item[0].number in named]
    parts.append(_labels(placed, labels, taken, (left, top, right, bottom)))
    title = f"{len(points)} candidates: score over latency"
    detail = "; ".join(
        f"{one.number} {one.name}, {one.status}: {score_text(one.score)} at "
        f"{one.latency_ms:.3g} ms, {one.size_bytes} bytes"
        for one in sorted(points, key=lambda one: one.number)
    )
    return _svg(ident, width, height, title, detail, parts)


def latency_plot(
    curves: Sequence[Curve], *, ident: str, width: int, height: int
) -> Markup:
    """Share of runs that took at most so long, one step line per artifact."""
    left, right, top, bottom = 52.0, width - 14.0, 14.0, height - 40.0
    low = min(curve.quantiles_ms[0] for curve in curves)
    high = max(curve.quantiles_ms[-2] * 1.25 for curve in curves)
    pad = (high / low) ** 0.04
    x = Scale(low / pad, high, left, right, log=high / low > 2.5)
    y = Scale(0.0, 1.0, bottom, top)
    parts = [_grid(x, y, lambda share: f"{share * 100:.0f} %", max(3, width // 110))]
    for curve in curves:
        steps = len(curve.quantiles_ms) - 1
        inside = [
            (x(value), y(n / steps))
            for n, value in enumerate(curve.quantiles_ms)
            if value <= high
        ]
        parts.append(
            f'<polyline class="curve {escape(curve.style)}" points="{_path(inside)}"/>'
        )
        middle = curve.quantiles_ms[steps // 2]
        parts.append(
            f'<circle class="curve-dot {escape(curve.style)}" cx="{x(middle):.1f}" '
            f'cy="{y(0.5):.1f}" r="3.5"/>'
        )
    detail = "; ".join(
        f"{one.name}: median {one.quantiles_ms[len(one.quantiles_ms) // 2]:.3g} ms, "
        f"longest {one.quantiles_ms[-1]:.3g} ms"
        for one in curves
    )
    return _svg(ident, width, height, "Distribution of latency", detail, parts)


def _latency_scale(
    points: Sequence[Point], bounds: Bounds, left: float, right: float
) -> Scale:
    values = [one.latency_ms for one in points]
    limit = bounds.max_latency_ms
    # A limit far away would squeeze what is measured into a corner.
    if limit and min(values) / 3 < limit < max(values) * 3:
        values.append(limit)
    low, high = min(values), max(values)
    pad = max((high / low) ** 0.1, 1.12)
    return Scale(low / pad, high * pad, left, right, log=True)


def _score_scale(
    points: Sequence[Point], bounds: Bounds, bottom: float, top: float
) -> tuple[Scale, float]:
    """The vertical scale, better upwards, and the score from which on it is cut."""
    sign = 1.0 if bounds.better == "higher" else -1.0
    drops = [sign * (bounds.oracle - one.score) for one in points]
    losses = sorted(drop for drop in drops if drop > 0)
    worst = max(losses, default=0.0)
    if bounds.worst_score is not None and losses:
        allowed = sign * (bounds.oracle - bounds.worst_score)
        worst = min(worst, max(OFF_SCALE * allowed, 2 * losses[len(losses) // 2]))
    elif losses:
        worst = min(worst, 8 * losses[len(losses) // 2])
    best = max(0.0, *(-drop for drop in drops))
    if bounds.worst_score is not None:
        worst = max(worst, sign * (bounds.oracle - bounds.worst_score))
    span = max(worst + best, abs(bounds.oracle) * 1e-3, 1e-9)
    low = bounds.oracle - sign * (worst + 0.16 * span)
    high = bounds.oracle + sign * (best + 0.14 * span)
    return Scale(low, high, bottom, top), bounds.oracle - sign * (worst + 0.05 * span)


def _beyond(score: float, cut: float, better: str) -> bool:
    return score < cut if better == "higher" else score > cut


def _clip(score: float, y: Scale) -> float:
    low, high = sorted((y.low, y.high))
    inner = (high - low) * 0.05
    return min(max(score, low + inner), high - inner)


def _radius(point: Point, scale: float) -> float:
    return max(BUBBLE_MIN, math.sqrt(point.size_bytes) * scale)


def _grid(x: Scale, y: Scale, text: Callable[[float], str], wanted_x: int) -> str:
    parts = [f'<line class="axis" x1="{x.start}" x2="{x.end}" y1="{y.start}" '
             f'y2="{y.start}"/>']  # fmt: skip
    ordered = Scale(min(y.low, y.high), max(y.low, y.high), 0.0, 1.0)
    for tick in ordered.ticks(4):
        at = y(tick)
        parts.append(
            f'<line class="grid" x1="{x.start}" x2="{x.end}" y1="{at:.1f}" '
            f'y2="{at:.1f}"/><text class="tick" x="{x.start - 7}" y="{at + 4:.1f}" '
            f'text-anchor="end">{escape(text(tick))}</text>'
        )
    for tick in x.ticks(wanted_x):
        at = x(tick)
        parts.append(
            f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{y.start}" '
            f'y2="{y.start + 4}"/><text class="tick" x="{at:.1f}" y="{y.start + 17}" '
            f'text-anchor="middle">{tick:.3g}</text>'
        )
    parts.append(
        f'<text class="tick" x="{x.end}" y="{y.start + 33}" text-anchor="end">'
        "milliseconds →</text>"
    )
    return "".join(parts)


def _limits(
    x: Scale, y: Scale, bounds: Bounds, text: Callable[[float], str], taken: list[Box]
) -> list[str]:
    """The lines of float and budget with their names; these names join ``taken``."""
    lines, notes, edge = [], [], x.end
    limit = bounds.max_latency_ms
    if limit and x.low < limit < x.high:
        edge = x(limit)
        lines.append(_line("limit", edge, y.end, edge, y.start))
        name = f"limit {limit:.3g} ms"
        notes.append(_note(name, (x.start, x.end), y.start, taken, edge))
    if bounds.worst_score is not None:
        floor = y(bounds.worst_score)
        lines.insert(
            0,
            f'<rect class="allowed" x="{x.start}" y="{y.end}" '
            f'width="{edge - x.start:.1f}" height="{floor - y.end:.1f}"/>',
        )
        lines.append(_line("limit", x.start, floor, x.end, floor))
        name = f"limit {text(bounds.worst_score)}"
        notes.append(_note(name, (x.start, x.end), floor, taken))
    at = y(bounds.oracle)
    lines.append(_line("oracle", x.start, at, x.end, at))
    notes.append(_note(f"float {text(bounds.oracle)}", (x.start, x.end), at, taken))
    taken.append((x.start, at - 1, x.end, at + 1))
    return lines + notes


def _line(style: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return (
        f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" '
        f'x2="{x2:.1f}" y2="{y2:.1f}"/>'
    )


def _note(
    words: str,
    span: tuple[float, float],
    y: float,
    taken: list[Box],
    beside: float | None = None,
) -> str:
    """The name of a line, at the end of it or ``beside`` it where least is covered."""
    width = len(words) * LETTER
    ends = (span[0] + 6, span[1] - 6 - width)
    if beside is not None:
        ends = (beside - width - 5, beside + 5)
    lefts = [left for left in ends if span[0] <= left <= span[1] - width] or [ends[0]]
    uppers = (y - LINE - 5, y + 4) if beside is None else (y - LINE - 4,)
    boxes = [(x, top, x + width, top + LINE) for top in uppers for x in lefts]
    box = min(boxes, key=lambda one: sum(_overlap(one, other) for other in taken))
    taken.append(box)
    at = f'x="{box[0]:.1f}" y="{box[3] - 3:.1f}"'
    return f'<text class="note" {at}>{escape(words)}</text>'


def _front(
    points: Sequence[Point], x: Scale, y: Scale, better: str, cut: float
) -> list[tuple[float, float]]:
    """The line through candidates that no other beats in both speed and score."""
    sign = 1.0 if better == "higher" else -1.0
    corners: list[tuple[float, float]] = []
    best = -math.inf
    for one in sorted(points, key=lambda one: (one.latency_ms, -sign * one.score)):
        if sign * one.score > best and not _beyond(one.score, cut, better):
            if corners:
                corners.append((x(one.latency_ms), corners[-1][1]))
            corners.append((x(one.latency_ms), y(one.score)))
            best = sign * one.score
    return corners


def _box(x: float, y: float, half: float) -> Box:
    return (x - half, y - half, x + half, y + half)


def _bubble(one: Point, x: float, y: float, radius: float, beyond: bool) -> str:
    kind = f'class="dot {escape(one.status)}"'
    if beyond:
        tip = f"M{x - 6:.1f} {y - 5:.1f}h12l-6 10z"
        return f'<path {kind} d="{tip}"/>'
    return f'<circle {kind} cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"/>'


def _labels(
    placed: Sequence[tuple[Point, float, float, float]],
    labels: Mapping[int, str],
    taken: list[Box],
    frame: Box,
) -> str:
    """Numbers beside the bubbles, where they cover neither bubble nor each other."""
    parts = []
    for one, x, y, radius in sorted(
        placed, key=lambda item: (item[0].status != "chosen", item[0].number)
    ):
        label = labels[one.number]
        box = _free_place(x, y, radius, len(label) * LETTER, taken, frame)
        taken.append(box)
        near = abs((box[0] + box[2]) / 2 - x) + abs((box[1] + box[3]) / 2 - y)
        if near > radius + len(label) * LETTER + 12:
            parts.append(
                f'<line class="leader" x1="{x:.1f}" y1="{y:.1f}" '
                f'x2="{(box[0] + box[2]) / 2:.1f}" y2="{(box[1] + box[3]) / 2:.1f}"/>'
            )
        parts.append(
            f'<text class="label {escape(one.status)}" x="{box[0]:.1f}" '
            f'y="{box[3] - 3:.1f}">{escape(label)}</text>'
        )
    return "".join(parts)


def _free_place(
    x: float, y: float, radius: float, width: float, taken: Iterable[Box], frame: Box
) -> Box:
    best, least = (x, y, x + width, y + LINE), math.inf
    obstacles = list(taken)
    for ring in (3.0, 14.0, 28.0):
        out = radius + ring
        for turn in range(16):
            angle = math.tau * turn / 16
            across, down = math.cos(angle), math.sin(angle)
            left = x + across * out - width * (1 - across) / 2
            upper = y + down * out - LINE * (1 - down) / 2
            box = (left, upper, left + width, upper + LINE)
            cost = sum(_overlap(box, other) for other in obstacles) + ring
            outside = width * LINE - _overlap(box, frame)
            cost += 10 * outside
            if cost < least - 1e-9:
                best, least = box, cost
    return best


def _overlap(one: Box, other: Box) -> float:
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, across) * max(0.0, down)


def _path(corners: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)


def _step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return power * next(m for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))


def _svg(
    ident: str, width: int, height: int, title: str, detail: str, parts: list[str]
) -> Markup:
    # Each part was made here; text in it went through escape().
    body = Markup("").join(map(Markup, parts))
    return Markup(
        '<svg class="plot" viewBox="0 0 {0} {1}" role="img" '
        'aria-labelledby="{2}-t {2}-d"><title id="{2}-t">{3}</title>'
        '<desc id="{2}-d">{4}</desc>{5}</svg>'
    ).format(width, height, ident, title, detail, body)
