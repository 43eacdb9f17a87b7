"""Frozen dataclasses from YAML and `--set a.b=value`, validated strictly."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import yaml

from rayecg.core.catalogue import nearest
from rayecg.core.errors import SettingsError

T = TypeVar("T")


class Overrides(dict[str, Any], Generic[T]):
    """Some fields of a settings dataclass, checked like the whole when they are read.

    A field that is a section itself holds the fields of that section that differ.
    """

    def applied_to(self, settings: T, origin: str, place: str = "") -> T:
        """Give `settings` with these fields changed; see `load_settings` for the errors."""
        tree = to_tree(settings)
        _merge(tree, self)
        return build(type(settings), tree, origin, place)


def _merge(tree: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(tree.get(key), dict):
            _merge(tree[key], value)
        else:
            tree[key] = value


class _StrictLoader(yaml.SafeLoader):
    """The safe loader, which besides refuses a key that stands twice (YAML would keep the last)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    text = f"the key {key.value!r} stands there twice"
                    raise yaml.constructor.ConstructorError(None, None, text, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_settings(kind: type[T], path: str | Path | None, overrides: Sequence[str] = ()) -> T:
    """Fill a settings dataclass from a YAML file and `a.b=value` overrides.

    Parameters
    ----------
    kind
        The dataclass to fill.
    path
        A YAML file holding a mapping; None starts from the defaults.
    overrides
        Strings `section.key=value`; the value is read as YAML. They are applied one after another,
        and each must leave settings that are valid: `split.protocol=kfold` goes before `split.k=9`.

    Raises
    ------
    SettingsError
        For a file that is missing or not YAML, an unknown key, or a value of the wrong type. The
        message names the file (or the override), the key and the nearest right one.
    """
    tree: dict[str, Any] = {} if path is None else read_yaml(path)
    origin = "settings" if path is None else str(path)
    settings = build(kind, tree, origin)  # the file's own mistakes are reported as the file's
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise SettingsError(f"--set {text}: expected section.key=value")
        try:
            parsed = yaml.load(value, _StrictLoader)
        except yaml.YAMLError as error:
            raise SettingsError(
                f"--set {text}: the value is not YAML ({_one_line(error)})"
            ) from None
        tree = to_tree(settings)  # where what was written in short is a section
        _put(tree, key.split("."), parsed, text)
        settings = build(kind, tree, f"--set {text}")
    return settings


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that must hold a mapping, with the safe loader."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SettingsError(f"{path}: cannot be read ({reason})") from None
    try:
        tree = yaml.load(text, _StrictLoader)
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: not valid YAML ({_one_line(error)})") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise SettingsError(f"{path}: expected keys and values, came {type(tree).__name__}")
    return tree


def build(kind: type[T], tree: Mapping[str, Any], origin: str, place: str = "") -> T:
    """Fill one dataclass from a mapping; see `load_settings`."""
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    values = {}
    for key, value in tree.items():
        at = f"{place}.{key}" if place else str(key)
        if key not in names:
            raise SettingsError(f"{origin}: unknown key {at!r} ({nearest(str(key), names)})")
        values[key] = _convert(hints[key], value, origin, at)
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{origin}: {place or 'settings'}: {error}") from None


def _some_fields(kind: Any, tree: Mapping[str, Any], origin: str, place: str) -> dict[str, Any]:
    """Check some fields of a dataclass, each by itself; sections keep what they say alone."""
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    found: dict[str, Any] = {}
    for key, value in tree.items():
        at = f"{place}.{key}"
        if key not in names:
            raise SettingsError(f"{origin}: unknown key {at!r} ({nearest(str(key), names)})")
        sections: list[Any] = [
            part
            for part in (hints[key], *typing.get_args(hints[key]))
            if dataclasses.is_dataclass(part)
        ]
        shorthand = getattr(sections[0], "SHORTHAND", None) if sections else None
        if hints[key] in sections and value is None:
            found[key] = {}  # an empty section changes nothing
        elif sections and isinstance(value, Mapping):
            found[key] = _some_fields(sections[0], value, origin, at)
        elif shorthand and isinstance(value, str):
            found[key] = _some_fields(sections[0], {shorthand: value}, origin, at)
        else:
            found[key] = to_tree(_convert(hints[key], value, origin, at))
    return found


def to_tree(settings: Any) -> Any:
    """Give settings as plain dicts, lists and scalars, ready for YAML or JSON."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        return {f.name: to_tree(getattr(settings, f.name)) for f in dataclasses.fields(settings)}
    if isinstance(settings, Mapping):
        return {str(key): to_tree(value) for key, value in settings.items()}
    if isinstance(settings, (list, tuple)):
        return [to_tree(value) for value in settings]
    return settings


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _put(tree: dict[str, Any], keys: list[str], value: Any, text: str) -> None:
    for key in keys[:-1]:
        child = tree.setdefault(key, {})
        if child is None:
            child = tree[key] = {}
        if not isinstance(child, dict):
            raise SettingsError(f"--set {text}: {key!r} holds a value, not a section")
        tree = child
    tree[keys[-1]] = value


def _convert(hint: Any, value: Any, origin: str, at: str) -> Any:
    """Check `value` against the annotation `hint` and give it in that type."""

    def wrong(expected: str) -> SettingsError:
        return SettingsError(f"{origin}: {at}: expected {expected}, came {value!r}")

    base, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if base is Overrides:
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise wrong("a section of keys and values")
        return Overrides(_some_fields(arguments[0], value, origin, at))
    if base in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        kinds = [kind for kind in arguments if kind is not type(None)]
        if value is None or len(kinds) > 1:
            raise wrong(" or ".join(_name(kind) for kind in kinds))
        return _convert(kinds[0], value, origin, at)
    if base is Literal:
        if value is False and "off" in arguments:
            value = "off"  # YAML 1.1 reads the word off as false
        if value not in arguments:
            raise wrong("one of " + ", ".join(str(a) for a in arguments))
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        shorthand = getattr(hint, "SHORTHAND", None)
        if shorthand and isinstance(value, str):
            value = {shorthand: value}
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise wrong("a section of keys and values")
        return build(hint, value, origin, at)
    if base is tuple:
        if not isinstance(value, (list, tuple)):
            raise wrong("a list")
        if arguments[-1] is not Ellipsis and len(value) != len(arguments):
            raise wrong(f"a list of {len(arguments)}")
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        return tuple(
            _convert(kind, item, origin, f"{at}[{i}]")
            for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
        )
    if base is dict:
        if not isinstance(value, dict):
            raise wrong("a section of keys and values")
        return {
            _convert(arguments[0], k, origin, at): _convert(arguments[1], v, origin, f"{at}.{k}")
            for k, v in value.items()
        }
    if hint is float:
        return _float(value, wrong)
    if hint is int and isinstance(value, bool):
        raise wrong("a whole number")
    if isinstance(value, hint):
        return value
    raise wrong(_name(hint))


def _float(value: Any, wrong: Any) -> float:
    # PyYAML follows YAML 1.1, where 1e-3 without a dot is a string.
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise wrong("a number")
    try:
        return float(value)
    except (ValueError, OverflowError):
        raise wrong("a number") from None


def _name(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return names.get(hint, str(getattr(hint, "__name__", hint)))
