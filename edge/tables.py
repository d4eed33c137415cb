"""A table of TOML → a frozen struct, or one line that says what is wrong with it."""

import difflib
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from edge.errors import ConfigError

T = TypeVar("T")


def converted(data: Any, kind: type[T], where: str, prefix: str = "") -> T:
    """Raises `ConfigError` that names `where`, if it is said, and the key, below `prefix`."""
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        message, _, at = str(error).partition(" - at `$")
        said = (where, f"{prefix}{at.rstrip('`')}".lstrip("."), f"{message[0].lower()}{message[1:]}")
        raise ConfigError(": ".join(filter(None, said))) from None


def refuse_unknown_keys(data: Any, struct: Any, where: str, prefix: str) -> None:
    """msgspec refuses unknown keys too, but cannot say which known one was meant."""
    if not isinstance(data, dict):
        return
    hints = get_type_hints(struct, include_extras=True)
    for key, value in data.items():
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(sorted(hints))}"
            raise ConfigError(f"{where}: unknown key `{prefix}{printable(key)}`; {hint}")
        inner = unwrap(hints[key])
        if hasattr(inner, "__struct_fields__"):
            refuse_unknown_keys(value, inner, where, f"{prefix}{key}.")
        elif get_origin(inner) is tuple and isinstance(value, list):
            for i, item in enumerate(value):
                refuse_unknown_keys(item, unwrap(get_args(inner)[0]), where, f"{prefix}{key}[{i}].")
        elif get_origin(inner) is dict and isinstance(value, dict):
            for name, item in value.items():
                refuse_unknown_keys(item, unwrap(get_args(inner)[1]), where, f"{prefix}{key}.{printable(name)}.")


def unwrap(hint: Any) -> Any:
    """The one type that matters in `Annotated[T, …] | None`."""
    if get_origin(hint) is Annotated:
        return unwrap(get_args(hint)[0])
    if type(None) in (args := get_args(hint)):
        return unwrap(next(arg for arg in args if arg is not type(None)))
    return hint


def printable(text: str) -> str:
    """TOML lets a quoted key hold anything, but what is said of it is one line."""
    return text if text.isprintable() else repr(text)[1:-1]
