"""`--config`: a YAML file of option: value lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from srlm.errors import UserError
from srlm.shipped import shipped


def read_config(file: Path) -> dict[Any, Any]:
    """Option -> value, of a YAML file.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        options = yaml.load(shipped(file).read_text(encoding="utf-8"), _Plain)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"config file {file} cannot be read ({reason}): give a YAML file of option: value lines"
        ) from error
    if not isinstance(options, dict):
        raise UserError(f"config file {file} holds {type(options).__name__}, expected option: value lines")
    return options


class _Plain(yaml.SafeLoader):  # type: ignore[misc]
    """Plain YAML: no aliases, which can stand for more than a machine holds, and no key twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias (*name): write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.YAMLError(f"{twice[0]!r} stands twice: leave one out")
        made: dict[Any, Any] = super().construct_mapping(node, deep)
        return made
