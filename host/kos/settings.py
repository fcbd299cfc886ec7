"""Settings: flags, then `KOS_*` variables, then `[tool.kos]` in pyproject.toml, then defaults."""

import os
import tomllib
from pathlib import Path
from typing import Any

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
            section = tomllib.loads(path.read_text()).get("tool", {}).get("kos", {})
            return dict(section)
    return {}


def _typed(name: str, value: Any, source: str) -> Any:
    """A value as its default's type; ValueError names where the wrong one came from."""
    kind = type(DEFAULTS[name])
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"{source}: {name} must be {kind.__name__}, not {value!r}") from None


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
        settings[name] = _typed(name, value, "pyproject.toml")
    for name in DEFAULTS:
        variable = f"KOS_{name.upper()}"
        if variable in os.environ:
            settings[name] = _typed(name, os.environ[variable], variable)
    settings.update({name: value for name, value in flags.items() if value is not None})
    return settings
