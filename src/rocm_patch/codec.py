"""Frozen dataclasses <-> JSON, by their annotations; the standard library only, since root reads plans with it.

Reading is strict: an unknown key, a missing one or a wrong type is a `FormatError` that names the place.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from rocm_patch.errors import FormatError

T = TypeVar("T")


def encode(value: Any) -> Any:
    """Turn a value of `model` into what `json.dumps` takes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [encode(item) for item in value]
    return value


def dumps(value: Any) -> str:
    """Render as one JSON document with a final newline."""
    return json.dumps(encode(value), indent=2, ensure_ascii=False) + "\n"


def loads(kind: type[T], text: str | bytes, what: str) -> T:
    """Read a value of type `kind` from JSON text; `what` names the document in errors."""
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what} is not JSON: {error}") from error
    value: T = decode(kind, raw, what)
    return value


def decode(kind: Any, raw: Any, where: str) -> Any:
    """Build a value of `kind` from plain JSON data."""
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind) or (origin is not None and dataclasses.is_dataclass(origin)):
        return _decode_dataclass(kind, raw, where)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(typing.get_args(kind), raw, where)
    if origin is typing.Literal:
        if raw not in typing.get_args(kind):
            raise FormatError(f"{where}: {raw!r} is none of {', '.join(map(repr, typing.get_args(kind)))}")
        return raw
    if origin is tuple:
        if not isinstance(raw, list):
            raise FormatError(f"{where}: a list was expected")
        item = typing.get_args(kind)[0]
        return tuple(decode(item, entry, f"{where}[{index}]") for index, entry in enumerate(raw))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(raw, dict):
            raise FormatError(f"{where}: an object was expected")
        item = typing.get_args(kind)[1]
        return types.MappingProxyType({_text(key, where): decode(item, entry, f"{where}.{key}") for key, entry in raw.items()})
    if kind is type(None) or kind is None:
        if raw is not None:
            raise FormatError(f"{where}: null was expected")
        return None
    if kind is float and isinstance(raw, int) and not isinstance(raw, bool):
        return float(raw)
    if isinstance(kind, type) and type(raw) is kind:
        return _text(raw, where) if isinstance(raw, str) else raw
    raise FormatError(f"{where}: {getattr(kind, '__name__', kind)} was expected, not {type(raw).__name__}")


def _text(raw: str, where: str) -> str:
    """JSON can spell half of a pair; no file can hold it, and whoever wrote it down later ended with a traceback.

    U+DC80 to U+DCFF stay: so Python spells the bytes of a file name that is not UTF-8.
    """
    try:
        raw.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise FormatError(f"{where}: {raw!a} is no text: half of a surrogate pair") from error
    return raw


@functools.cache
def _fields(cls: type) -> tuple[tuple[dataclasses.Field[Any], Any], ...]:
    hints = typing.get_type_hints(cls)
    return tuple((field, hints[field.name]) for field in dataclasses.fields(cls))


def _decode_dataclass(kind: Any, raw: Any, where: str) -> Any:
    cls = typing.get_origin(kind) or kind
    parameters = dict(zip(getattr(cls, "__parameters__", ()), typing.get_args(kind), strict=False))
    if not isinstance(raw, dict):
        raise FormatError(f"{where}: an object was expected")
    known = {field.name for field, _ in _fields(cls)}
    for key in raw:
        if key not in known:
            raise FormatError(f"{where}: unknown key {key!r}")
    values: dict[str, Any] = {}
    for field, hint in _fields(cls):
        if field.name in raw:
            values[field.name] = decode(parameters.get(hint, hint), raw[field.name], f"{where}.{field.name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise FormatError(f"{where}: the key {field.name!r} is missing")
    return cls(**values)


def _decode_union(choices: tuple[Any, ...], raw: Any, where: str) -> Any:
    complaint = FormatError(f"{where}: no fitting type")
    for choice in choices:
        try:
            return decode(choice, raw, where)
        except FormatError as error:
            complaint = error
    raise complaint
