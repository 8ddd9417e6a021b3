"""What a release has to say of itself in more than one place."""

import re
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import device_agent
import edgeml
from device_agent.trust.clock import BUILT

ROOT = Path(__file__).resolve().parent.parent
HEADING = re.compile(r"^## (\S+) \((unreleased|\d{4}-\d\d-\d\d)\)$", re.MULTILINE)


def test_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    version, _ = HEADING.findall((ROOT / "CHANGELOG.md").read_text())[0]
    assert version == device_agent.__version__ == edgeml.__version__
    assert project.get("version", version) == version


def test_the_clock_knows_when_its_agent_was_released() -> None:
    """A device without a clock judges expiry by it: an old floor is a weak one."""
    made = datetime.fromtimestamp(BUILT, UTC)
    assert made < datetime.now(UTC), "BUILT lies in the future"
    headings = HEADING.findall((ROOT / "CHANGELOG.md").read_text())
    dates = [date for _, date in headings if date != "unreleased"]
    for date in dates[:1]:
        released = datetime.fromisoformat(date).replace(tzinfo=UTC)
        late = f"{date} was released: raise BUILT in device_agent/trust/clock.py"
        assert released - made < timedelta(days=31), late
