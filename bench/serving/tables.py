"""The run as tables: for the terminal and for Markdown, of the same rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from .entrants import BARE, ENTRANTS
from .load import Figures
from .results import Results, Scenario
from .verdicts import Verdict, number

MARK = "<!-- result -->"
"""What follows it in a Markdown file is replaced by the next run."""
TITLES = {"mlp": "MLP 16-32-4, float32", "image": "3x96x96 network, int8"}
FIGURES: tuple[tuple[str, Callable[[Figures], float]], ...] = (
    ("CPU µs", lambda one: one.cpu_us),
    ("p50 ms", lambda one: one.p50_us / 1e3),
    ("p99 ms", lambda one: one.p99_us / 1e3),
    ("requests/s", lambda one: one.rate),
)


@dataclass(frozen=True)
class Table:
    """A title and rows of texts, the first of which is the head."""

    title: str
    rows: tuple[tuple[str, ...], ...]


def tables(results: Results, clients: Sequence[int]) -> list[Table]:
    """One for each model, one of starts and memory."""
    models = dict.fromkeys(scenario.model for scenario in results.rounds)
    made = [_speeds(results, model, clients) for model in models]
    return [*made, _footprints(results)]


def _speeds(results: Results, model: str, clients: Sequence[int]) -> Table:
    counts = " · ".join(map(str, clients))
    head = ("who", "encoding", "over", *(f"{name} at {counts}" for name, _ in FIGURES))
    places = dict.fromkeys(
        scenario[:4]
        for scenario in results.rounds
        if scenario.model == model and scenario.who != BARE
    )
    rows = [head]
    alone = [
        figures
        for scenario, rounds in results.rounds.items()
        for figures in rounds
        if scenario.model == model and scenario.who == BARE
    ]
    if alone:
        medians = (median(map(figure, alone)) for _, figure in FIGURES)
        rows.append((BARE, "-", "-", *map(number, medians)))
    for who, _, encoding, transport in sorted(places, key=_place):
        cells = []
        for _, figure in FIGURES:
            values = [
                results.median(Scenario(who, model, encoding, transport, one), figure)
                for one in clients
            ]
            cells.append(" · ".join("-" if v is None else number(v) for v in values))
        rows.append((who, encoding, transport, *cells))
    return Table(f"{TITLES.get(model, model)}: CPU of all processes", tuple(rows))


def _footprints(results: Results) -> Table:
    rows = [
        ("model", "who", "first start s", "later starts s", "RSS MB after one answer",
         "RSS MB", "PSS MB", "processes"),
    ]  # fmt: skip
    for (who, model), starts in results.starts.items():
        loaded = results.loaded.get((who, model))
        memory = results.memory.get((who, model))
        rows.append(
            (
                model, who, number(starts.first_s),
                number(starts.later) if starts.later_s else "-",
                f"{loaded.rss_bytes / 1e6:.0f}" if loaded else "-",
                f"{memory.rss_bytes / 1e6:.0f}" if memory else "-",
                f"{memory.pss_bytes / 1e6:.0f}" if memory else "-",
                str(memory.processes) if memory else "-",
            )
        )  # fmt: skip
    return Table(
        "Start to first answer; memory, and that after all rounds", tuple(rows)
    )


def remarks(results: Results) -> list[str]:
    """Versions, and whose figures are missing or doubtful."""
    told = [f"{who}: {versions}" for who, versions in results.versions.items()]
    told += [f"{who}: absent: {reason}" for who, reason in results.absent.items()]
    who = dict.fromkeys(scenario.who for scenario in results.rounds)
    return told + [
        f"{one}: {results.errors(one)} wrong or lost answers"
        for one in who
        if results.errors(one)
    ]


def _place(key: Sequence[str]) -> tuple[int, str, str]:
    order = [entrant.name for entrant in ENTRANTS]
    who, _, encoding, transport = key
    return order.index(who), encoding, transport


def markdown(
    made: Sequence[Table], verdicts: Sequence[Verdict], remarks: Sequence[str]
) -> str:
    """The whole result."""
    parts = []
    for table in made:
        widths = [max(map(len, column)) for column in zip(*table.rows, strict=True)]
        lines = [
            "| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in table.rows
        ]
        rule = "| " + " | ".join("-" * width for width in widths) + " |"
        parts += [f"### {table.title}", "\n".join([lines[0], rule, *lines[1:]])]
    parts.append("```\n" + "\n".join(map(str, verdicts)) + "\n```")
    parts.append("\n".join(f"- {remark}" for remark in remarks))
    return "\n\n".join(parts) + "\n"


def written(text: str, file: Path) -> None:
    """Into ``file``: after its mark where it has one, else in place of everything."""
    before, mark, _ = (file.read_text() if file.exists() else "").partition(MARK)
    file.write_text(f"{before}{mark}\n\n{text}" if mark else text)


def printed(made: Sequence[Table]) -> None:
    """To the terminal, by rich."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Drawn

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    for table in made:
        drawn = Drawn(title=table.title, title_justify="left", box=box.SIMPLE_HEAD)
        for at, name in enumerate(table.rows[0]):
            drawn.add_column(name, justify="left" if at < 1 else "right")
        for row in table.rows[1:]:
            drawn.add_row(*row)
        console.print(drawn)
