"""How a test reads a configuration."""

from pathlib import Path

import pytest

from device_agent.config import AgentConfig, Overrides, load_config
from device_agent.errors import ConfigError

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "packaging" / "agent.toml"
NOTHING = Overrides()
SOMEWHERE = Overrides(state=Path("/state"))


def read(folder: Path, text: str, overrides: Overrides = SOMEWHERE) -> AgentConfig:
    path = folder / "agent.toml"
    path.write_text(text, newline="")
    return load_config(path, overrides)


def mistakes(folder: Path, text: str, overrides: Overrides = SOMEWHERE) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(folder, text, overrides)
    return str(caught.value).splitlines()
