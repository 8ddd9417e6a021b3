"""Reads ``agent.toml`` and the command line into one configuration.

Nothing raises at the first mistake: it is noted at its place, its default stands in,
and all mistakes are reported together.
"""

import json
import re
import tomllib
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from math import inf
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from . import rules
from .environment import default_state
from .keys import keys, show, tables
from .lines import KeyPath, key_lines, syntax
from .schema import MODEL_NAME, AgentConfig, ModelConfig, Overrides

CONFIG_BYTES_MAX = 64 << 10

Values = dict[str, Any]


def load_config(path: Path | None, overrides: Overrides) -> AgentConfig:
    """The configuration: defaults, under the file, under the command line.

    Args:
        path: the file; None: none is read.
        overrides: what the command line says.

    Raises:
        ConfigError: the file cannot be read, or there are mistakes. The text has a
            line for each, ``agent.toml:LINE: [table] key: what is wrong``, in order.
    """
    reader = _Reader(path)
    document = reader.document()
    root = reader.table((), document, AgentConfig)
    given = {
        name: reader.table((name,), document.get(name, {}), table)
        for name, table in tables().items()
    }
    models = reader.models(document.get("models", {}))
    reader.command_line(root, given, overrides)
    if "state" not in root:
        root["state"] = reader.state()
    config = AgentConfig(
        **root,
        **{name: table(**given[name]) for name, table in tables().items()},
        models={
            name: ModelConfig(**(given["model"] | own)) for name, own in models.items()
        },
    )
    reader.contradictions(config, given["listen"], models)
    reader.report()
    return config


class _Reader:
    def __init__(self, path: Path | None) -> None:
        self._file = path
        self._folder = (path or Path("agent.toml")).absolute().parent
        self._lines: dict[KeyPath, int] = {(): 1}
        self._flags: dict[KeyPath, str] = {}  # what the command line says
        self._wrong: set[KeyPath] = set()
        self._mistakes: list[tuple[float, str]] = []

    def document(self) -> Values:
        """The file as TOML has it, empty where there is none."""
        if self._file is None:
            return {}
        name = self._file.name
        try:
            with self._file.open("rb") as file:
                raw = file.read(CONFIG_BYTES_MAX + 1)
        except OSError as error:
            why = f"{self._file}: cannot be read: {error.strerror}"
            raise ConfigError(why) from error
        if len(raw) > CONFIG_BYTES_MAX:
            raise ConfigError(f"{name}: expected at most {CONFIG_BYTES_MAX} bytes")
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            raise ConfigError(f"{name}:{line}: expected UTF-8") from error
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            line, why = syntax(str(error), text)
            raise ConfigError(f"{name}:{line}: not TOML: {why}") from error
        except RecursionError as error:
            raise ConfigError(f"{name}: not TOML: nested too deeply") from error
        self._lines = key_lines(text)
        return document

    def table(self, path: KeyPath, value: Any, table: type) -> Values:
        """The good values among those given."""
        if not isinstance(value, dict):
            self.note(path, f"expected table, found {show(value)}")
            return {}
        known = keys(table)
        inner = () if path else (*tables(), "models")
        good: Values = {}
        for name, item in value.items():
            if name in known:
                try:
                    good[name] = known[name].read(item, self._folder)
                except ValueError as error:
                    self.note((*path, name), str(error))
            elif name not in inner:
                what = "table" if isinstance(item, dict) else "key"
                hint = _meant(name, (*known, *inner))
                self.note((*path, name), f"unknown {what}; {hint}")
        return good

    def models(self, value: Any) -> dict[str, Values]:
        """What is given for each model."""
        if not isinstance(value, dict):
            self.note(("models",), f"expected [models.NAME], found {show(value)}")
            return {}
        for name in value:
            if not MODEL_NAME.matches(name):
                text = f"expected {MODEL_NAME.kind}, found {show(name)}"
                self.note(("models", name), text)
        return {
            name: self.table(("models", name), item, ModelConfig)
            for name, item in value.items()
        }

    def command_line(
        self, root: Values, given: dict[str, Values], said: Overrides
    ) -> None:
        """Put what the command line says over what the file says."""
        values: list[tuple[str, KeyPath, Any]] = [
            ("--state", ("state",), said.state),
            ("--bundle", ("bundles",), list(map(str, said.bundles)) or None),
            ("--socket", ("listen", "socket"), said.socket),
            ("--log-format", ("log", "format"), said.log_format),
            ("--log-level", ("log", "level"), said.log_level),
        ]
        for flag, path, value in (*values, *self._address(said.listen)):
            if value is None:
                continue
            self._flags[path] = flag
            self._wrong.discard(path)
            section = given[path[0]] if path[1:] else root
            key = keys(tables()[path[0]] if path[1:] else AgentConfig)[path[-1]]
            plain = str(value) if isinstance(value, Path) else value
            try:
                section[key.name] = key.read(plain, Path.cwd())
            except ValueError as error:
                self.note(path, str(error))

    def _address(self, text: str | None) -> list[tuple[str, KeyPath, Any]]:
        if text is None:
            return []
        host, port, tcp = (("listen", key) for key in ("host", "port", "tcp"))
        found = re.fullmatch(r"(?:\[(.*:.*)\]|([^:]*)):([0-9]{1,5})", text)
        if found is None:
            self._flags[host] = "--listen"
            self.note(host, f"expected HOST:PORT or [IPV6]:PORT, found {show(text)}")
            return [("--listen", tcp, True)]
        return [
            ("--listen", tcp, True),
            ("--listen", host, found[1] or found[2]),
            ("--listen", port, int(found[3])),
        ]

    def state(self) -> Path:
        """The state directory where none is given."""
        try:
            return default_state()
        except ConfigError as error:
            self._mistakes.append((inf, str(error)))
            return Path()

    def contradictions(
        self, config: AgentConfig, listen: Collection[str], models: dict[str, Values]
    ) -> None:
        """Note what is right key by key and wrong together."""
        self._apply((), rules.of_agent(config))
        self._apply(("listen",), rules.of_listen(config.listen, listen))
        self._apply(("limits",), rules.of_limits(config.limits))
        self._apply(("model",), rules.of_model(config.model))
        for name, own in models.items():
            found = rules.of_model(config.models[name])
            self._apply(
                ("models", name), (item for item in found if own.keys() & {*item[0]})
            )
            if own.get("fallback") == name:
                path = ("models", name, "fallback")
                self.note(path, f"expected another model than {name} itself")
        for ring in rules.rings(config):
            text = f"expected an end, found {' → '.join((*ring, ring[0]))}"
            self.note(("models", ring[0], "fallback"), text)

    def _apply(self, table: KeyPath, found: Iterable[rules.Contradiction]) -> None:
        for names, text in found:
            paths = [(*table, name) for name in names]
            given = [path for path in paths if path in self._lines | self._flags]
            if not self._wrong.intersection(paths):
                self.note((given or paths)[0], text)

    def note(self, path: KeyPath, text: str) -> None:
        """Note a mistake at a key: with its flag, else with its line."""
        self._wrong.add(path)
        flag = self._flags.get(path)
        if flag is not None or self._file is None:
            self._mistakes.append((inf, f"{flag or _label(path)}: {text}"))
            return
        known = path
        while known not in self._lines:
            known = known[:-1]
        line = self._lines[known]
        place = f"{self._file.name}:{line}: {_label(path)}"
        self._mistakes.append((line, f"{place}: {text}"))

    def report(self) -> None:
        """Raise ConfigError if there were mistakes."""
        if self._mistakes:
            ordered = sorted(self._mistakes, key=lambda mistake: mistake[0])
            raise ConfigError("\n".join(text for _, text in ordered))


def _meant(name: str, known: Collection[str]) -> str:
    """What may have been meant by an unknown key."""
    near = get_close_matches(name, known, 1)
    if near:
        return f"did you mean {near[0]}?"
    if name in keys(AgentConfig):
        return "it belongs above the first table"
    homes = [f"[{home}]" for home, table in tables().items() if name in keys(table)]
    return f"it belongs in {homes[0]}" if homes else f"known: {', '.join(known)}"


def _label(path: KeyPath) -> str:
    """A key as people find it: ``[listen] port``."""
    depth = 2 if path[0] == "models" else 1 if path[0] in tables() else 0
    names = [
        name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)
        for name in path
    ]
    table = f"[{'.'.join(names[:depth])}] " if depth else ""
    return (table + ".".join(names[depth:])).strip()
