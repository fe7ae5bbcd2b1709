"""Values as TOML, for resolved recipes, examples and error texts."""

from __future__ import annotations

import json
import re
from typing import Any

BARE = re.compile(r"[A-Za-z0-9_-]+")


def text(value: Any) -> str:
    """A value on one line of TOML; a dict becomes an inline table without its None values."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(text, value))}]"
    if isinstance(value, dict):
        inside = ", ".join(pair(name, it) for name, it in value.items() if it is not None)
        return f"{{ {inside} }}" if inside else "{}"
    return str(value)


def pair(name: str, value: Any) -> str:
    """`name = value`; a list of tables goes over several lines."""
    bare = name if BARE.fullmatch(name) else text(name)
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        lines = "".join(f"    {text(item)},\n" for item in value)
        return f"{bare} = [\n{lines}]"
    return f"{bare} = {text(value)}"


def short(value: Any) -> str:
    """A value for an error text: at most 60 characters."""
    whole = text(value)
    return whole if len(whole) <= 60 else f"{whole[:57]}..."
