"""The ``edgeml`` command: one verb per function, its module imported when it runs.

Facts go to standard output, progress and errors to standard error. Exit codes: 0 done,
1 a difference or regression was found, 2 usage, 3 a gate was missed, 4 input refused,
5 the machine lacks something.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .emulator.verbs import app as emulator
from .errors import DIFFERENT, GATE, REFUSED
from .registry.keyverbs import app as keys
from .registry.verbs import app as registry
from .registry.verbs import publish
from .terminal import Json, Quiet, spoken, tell

app = typer.Typer(
    name="edgeml",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="From a trained model to verified bundles for edge devices.",
)
app.add_typer(emulator, name="emulator")
app.add_typer(keys, name="keys")
app.add_typer(registry, name="registry")
app.command("publish")(publish)

Out = Annotated[Path, typer.Option(help="Folder for bundles and report.")]
Bundle = Annotated[Path, typer.Argument(help="A .edgeml file.", show_default=False)]
Trust = Annotated[
    bool,
    typer.Option(help="Load .pt2 files, which can run code hidden in them."),
]


def main() -> None:
    """Entry point; every refusal is one line and an exit code, never a traceback."""
    for name in ("ORT_DISABLE_TELEMETRY", "NNCF_CI"):
        os.environ.setdefault(name, "1")
    app()


@app.command()
@spoken
def init(
    model: Annotated[Path, typer.Argument(help="The model to compile.")],
    out: Annotated[Path, typer.Option(help="The recipe to write.")] = Path(
        "recipe.toml"
    ),
    quiet: Quiet = False,
) -> None:
    """Write a commented recipe that builds."""
    from .cache import write_atomic
    from .errors import UsageError
    from .recipes.draft import draft

    if out.exists():
        raise UsageError(f"{out} exists; give another --out or remove it first")
    text = draft(model, out)
    write_atomic(out, text.encode())
    if not quiet:
        typer.echo(f"wrote {out}; next: edgeml build {out}")


Targets = Annotated[
    list[str] | None, typer.Option(help="For this target only (repeatable).")
]
Checked = Annotated[bool, typer.Option(help="Check every bundle afterwards.")]
Recipe = Annotated[Path, typer.Argument(help="The recipe (recipe.toml).")]


@app.command()
@spoken
def build(
    recipe: Recipe,
    target: Targets = None,
    out: Out = Path("build"),
    check: Checked = False,
    trust_model_code: Trust = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Compile a model into one verified bundle per target, with a report."""
    from .pipeline import Build

    def begun(*given: Any) -> Any:
        options: dict[str, Any] = {
            "targets": target or (), "trust_model_code": trust_model_code
        }  # fmt: skip
        work = Build(*given, **options)
        if work.recipe.search is None:
            return work
        from .search.search import Search

        return Search(*given, **options)

    return _ship(
        recipe, out, begun, target or (), check=check, as_json=as_json, quiet=quiet
    )


@app.command()
@spoken
def search(
    recipe: Recipe,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Points to try at most.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Time for trials, over all runs.")
    ] = None,
    target: Targets = None,
    out: Out = Path("build"),
    check: Checked = False,
    trust_model_code: Trust = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Look for the variation of a recipe that is best under its budget; build it."""
    from .search.search import Limits, Search

    def begun(*given: Any) -> Any:
        return Search(
            *given, targets=target or (), trust_model_code=trust_model_code,
            limits=Limits(trials, minutes),
        )  # fmt: skip

    return _ship(
        recipe, out, begun, target or (), check=check, as_json=as_json, quiet=quiet
    )


def _ship(
    recipe: Path, out: Path, begun: Callable[..., Any], asked: Sequence[str], *,
    check: bool, as_json: bool, quiet: bool,
) -> int:  # fmt: skip
    """Run what makes bundles; tell what became of it."""
    from .cache import Cache, check_writable, user_cache
    from .checking import check_built
    from .errors import UsageError
    from .evaluation.measure import MeasurementStore
    from .pipeline import Place, failure, write_reports
    from .progress import shown
    from .report import report_values, summary_lines

    if not recipe.is_file():
        raise UsageError(f"no recipe at {recipe}; edgeml init MODEL writes one")
    place = Place(out, Cache(out / ".cache"), MeasurementStore(user_cache()))
    with shown(quiet) as progress:
        work = begun(recipe, place, progress)
        for folder in (work.folder, place.cache.folder):
            check_writable(folder)
        outcome = work.run()
    report = work.folder / "report.html"
    if not quiet and not as_json:
        tell(None, False, lambda: summary_lines(outcome))
        typer.echo(f"report: {report}")
    missed = failure(outcome)
    code = 0
    if missed is not None:
        typer.echo(f"edgeml: {missed} ({report})", err=True)
        code = GATE if any(one.candidates for one in outcome.targets) else REFUSED
    elif check:
        names = (*asked, *work.recipe.targets)
        profiles = {Path(name).stem: name for name in reversed(names)}
        code, outcome = check_built(
            outcome, work.folder, profiles, work.recipe.folder, quiet=quiet or as_json
        )
        write_reports(work.folder, outcome)
    if as_json:
        tell(report_values(outcome), True, list)
        if not quiet:
            typer.echo(f"report: {report}", err=True)
    return code


@app.command()
@spoken
def check(
    file: Annotated[Path, typer.Argument(help="A bundle, .onnx or .tflite file.")],
    target: Annotated[
        str | None, typer.Option(help="Emulate this target, a name or a .toml file.")
    ] = None,
    cpu: Annotated[
        str | None, typer.Option(help="Emulate this processor, as QEMU calls it.")
    ] = None,
    here: Annotated[
        bool, typer.Option(help="Emulate nothing: answers only, by this machine.")
    ] = False,
    count: Annotated[
        bool, typer.Option(help="Count the instructions of an emulated inference.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds that an emulated check may take.")
    ] = 1800.0,
    engine: Annotated[
        Literal["podman", "docker"] | None,
        typer.Option(help="Run it in the agent's image, by this container engine."),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(help="The image (localhost/edgeml-agent:arm64-RUNTIME)."),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Run the device's own check on a bundle; or see whether a model file is sound.

    A bundle for another architecture is run under emulation of its target.
    """
    from .checking import Asked, check_bundle
    from .errors import UsageError

    if here and (target or cpu or count or engine):
        raise UsageError(
            "--here emulates nothing: --target, --cpu, --count and --engine do"
        )
    if engine and count:
        raise UsageError("--count counts by the pinned QEMU, not in an --engine")
    if image and not engine:
        raise UsageError("--image is what an --engine runs: name one")
    if file.suffix.lower() not in {".onnx", ".tflite"}:
        asked = Asked(target, cpu, here, count, timeout, engine, image)
        return check_bundle(file, asked, as_json=as_json, quiet=quiet)
    if target or cpu or count or engine:
        raise UsageError("--target, --cpu, --count and --engine are for bundles")
    from .bundling.facts import render_facts
    from .bundling.running import check_file

    facts = check_file(file)
    if not quiet:
        tell(facts, as_json, lambda: render_facts(facts))
    return 0


@app.command()
@spoken
def inspect(
    file: Annotated[Path, typer.Argument(help="A bundle, .onnx or .tflite file.")],
    as_json: Json = False,
) -> None:
    """Say what a bundle or a model file is."""
    from .bundling.facts import inspect as look
    from .bundling.facts import render_facts

    facts = look(file)
    tell(facts, as_json, lambda: render_facts(facts))


@app.command()
@spoken
def diff(
    before: Annotated[Path, typer.Argument(help="The bundle that is there.")],
    after: Annotated[Path, typer.Argument(help="The bundle that would replace it.")],
    max_accuracy_drop: float = 0.005,
    max_flip_rate: float = 0.05,
    max_size_growth: Annotated[float, typer.Option(help="Share, 0.1 = 10 %.")] = 0.1,
    max_latency_growth: Annotated[float, typer.Option(help="Share.")] = 0.2,
    as_json: Json = False,
) -> int:
    """Compare two bundles; exit 1 when the second is worse than allowed."""
    from .bundling.compare import Thresholds, diff_values, render_diff
    from .bundling.compare import diff as compare

    report = compare(
        before, after,
        Thresholds(
            max_accuracy_drop, max_flip_rate, max_size_growth, max_latency_growth
        ),
    )  # fmt: skip
    tell(diff_values(report), as_json, lambda: render_diff(report))
    return DIFFERENT if report.regressed else 0


@app.command()
@spoken
def bench(
    file: Annotated[Path, typer.Argument(help="A bundle, .onnx or .tflite file.")],
    seconds: Annotated[float, typer.Option(help="How long to measure.")] = 2.0,
    threads: Annotated[
        int | None, typer.Option(help="Instead of the target's.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure latency and memory of a bundle on this machine."""
    from .bundling.facts import render_facts
    from .bundling.running import bench as measure

    facts = measure(file, seconds=seconds, threads=threads)
    tell(facts, as_json, lambda: render_facts(facts))


@app.command()
@spoken
def unpack(
    bundle: Bundle,
    folder: Annotated[Path, typer.Argument(help="A folder that is not there yet.")],
    quiet: Quiet = False,
) -> None:
    """Write a bundle's verified members into a folder."""
    from device_agent.contract.bundle import unpack as write

    from .bundling.bundle import opened

    verified = opened(bundle)
    write(verified, folder)
    if not quiet:
        typer.echo(f"{len(verified.manifest.members) + 1} files in {folder}")


@app.command()
@spoken
def targets(
    name: Annotated[str | None, typer.Argument(help="Show this one.")] = None,
    as_json: Json = False,
) -> None:
    """List the target profiles, or show one."""
    from targets.profile import describe, load_target, target_names

    if name is not None:
        facts = describe(load_target(name))
        tell(facts, as_json, lambda: _profile_lines(facts))
        return
    rows = [describe(load_target(one)) for one in target_names()]
    tell(
        rows,
        as_json,
        lambda: [
            f"{row['name']:<16} {row['arch']:<8} {row['runtime']:<12} {row['title']}"
            for row in rows
        ],
    )


def _profile_lines(facts: dict[str, Any]) -> list[str]:
    sources = facts.get("sources", {})
    return [
        f"{key:<16} {value}" + (f"   ({sources[key]})" if key in sources else "")
        for key, value in facts.items()
        if key != "sources"
    ]


@app.command("convert-weights")
@spoken
def convert_weights(
    file: Annotated[Path, typer.Argument(help="A .pth or .pt with weights only.")],
    out: Annotated[Path, typer.Argument(help="The .safetensors to write.")],
    as_json: Json = False,
) -> None:
    """Turn pickled weights into safetensors, without running what is in them."""
    from .intake.weights import convert_weights as convert

    facts = convert(file, out)
    tell(facts, as_json, lambda: [f"{key}: {value}" for key, value in facts.items()])
