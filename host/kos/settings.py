"""Settings: flags, then `KOS_*` variables, then `[tool.kos]` in pyproject.toml, then defaults."""

import os
import tomllib
from pathlib import Path
from typing import Any, get_args

from kos.machine._argv import Accel, check_cpus, check_memory, parse_size
from kos.machine._ram import MachineType

MAX_TIMEOUT = 1_000_000
DEFAULTS: dict[str, Any] = {
    "memory": "256M",
    "cpus": 2,
    "machine": "microvm",
    "accel": "auto",
    "timeout": 10.0,
}


def _project() -> dict[str, Any]:
    """`[tool.kos]` of the nearest pyproject.toml above the working directory."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        path = folder / "pyproject.toml"
        if path.is_file():
            try:
                tools = tomllib.loads(path.read_text()).get("tool", {})
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
            section = tools.get("kos", {}) if isinstance(tools, dict) else {}
            if not isinstance(section, dict):
                raise ValueError(f"pyproject.toml: tool.kos must be a table, not {section!r}")
            return section
    return {}


def _checked(name: str, value: Any, source: str) -> Any:
    """A value as its default's type; ValueError names where the wrong one came from."""
    kind = type(DEFAULTS[name])
    try:
        typed = kind(value)
        # No number is cut to an int, and true is none.
        if kind is not str and (isinstance(value, bool) or typed != float(value)):
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError(f"{source}: {name} must be {kind.__name__}, not {value!r}") from None
    try:
        _check_range(name, typed)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    return typed


def _check_range(name: str, value: Any) -> None:
    """ValueError when no machine can have this value."""
    choices = {"machine": get_args(MachineType), "accel": ("auto", *get_args(Accel))}
    if name == "memory":
        check_memory(parse_size(value))
    elif name == "cpus":
        check_cpus(value)
    elif name == "timeout":
        if not 0 < value < MAX_TIMEOUT:
            raise ValueError(f"timeout {value}: seconds above 0, below {MAX_TIMEOUT}, are allowed")
    elif value not in choices[name]:
        raise ValueError(f"{name} {value!r}: {', '.join(choices[name])} are allowed")


def resolve(**flags: Any) -> dict[str, Any]:
    """All settings, with the flags that were given (those that are not None) on top.

    Raises:
        ValueError: A setting is unknown or has the wrong type; the message says where it stands.

    Example:
        >>> resolve(memory="64M")["memory"]
        '64M'
    """
    settings = dict(DEFAULTS)
    for name, value in _project().items():
        if name not in DEFAULTS:
            known = ", ".join(DEFAULTS)
            raise ValueError(f"pyproject.toml: [tool.kos] has no setting {name!r}; known: {known}")
        settings[name] = _checked(name, value, "pyproject.toml")
    for name in DEFAULTS:
        variable = f"KOS_{name.upper()}"
        if variable in os.environ:
            settings[name] = _checked(name, os.environ[variable], variable)
    settings.update({name: value for name, value in flags.items() if value is not None})
    return settings
