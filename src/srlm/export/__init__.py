"""`srlm export`: what a run made, in the formats of the tools that come next. Nothing is ever overwritten."""

from __future__ import annotations

from typing import TYPE_CHECKING

from srlm.lazy import exports

if TYPE_CHECKING:
    from srlm.export.write import about, export, refuse_used

__getattr__ = exports(__name__, dict.fromkeys(("about", "export", "refuse_used"), "srlm.export.write"))
__all__ = ["about", "export", "refuse_used"]
