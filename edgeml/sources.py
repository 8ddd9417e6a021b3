"""What a build is made of: digests of the recipe, the model's files and its code."""

import subprocess
from pathlib import Path

from .cache import file_digest
from .recipe import Recipe


def source_digests(recipe: Recipe) -> dict[str, str]:
    """Name → SHA-256 of the model file, its weights and the user's own Python code.

    What ``module:function`` imports further away cannot be seen; every Python file in
    the recipe's folder counts, so that an edit there is noticed.
    """
    folder = recipe.folder
    found: dict[str, str] = {}
    for name in (recipe.model.source, recipe.model.weights):
        if name is not None and (folder / name).is_file():
            found[name] = file_digest(folder / name)
    if _calls_code(recipe):
        for path in sorted(folder.glob("*.py")):
            found[path.name] = file_digest(path)
    if recipe.model.source.endswith(".onnx"):
        for path in sorted((folder / recipe.model.source).parent.glob("*.data")):
            found[path.name] = file_digest(path)
    return found


def commit_of(folder: Path) -> str | None:
    """The git commit of the repository that ``folder`` is in, where there is one."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _calls_code(recipe: Recipe) -> bool:
    data = recipe.data
    named = [recipe.model.source, recipe.metric.name]
    named += [
        split.location
        for split in (data.calibration, data.validation, data.train)
        if split is not None
    ]
    return any(":" in name and not name.startswith("set:") for name in named)
