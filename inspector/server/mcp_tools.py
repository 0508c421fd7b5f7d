"""Some events of the API as tools of the Model Context Protocol, and no others.

Gradio offers every event that its API describes. A tool's call comes back to this server as any client's does, through
the gate and the queue, and is bounded as that is.
"""

from __future__ import annotations

from collections.abc import Collection
from importlib.util import find_spec

from model import InputError


def offer_tools(names: Collection[str]) -> None:
    """Before ``launch(mcp_server=True)``: of the API's events these alone become tools. InputError where the package
    that speaks the protocol isn't installed."""
    if find_spec("mcp") is None:
        raise InputError("--mcp needs the package “mcp”, which isn't here; install “vlm-inspector[mcp]”.")
    import gradio.mcp  # it needs that package, which most servers don't have

    class NamedTools(gradio.mcp.GradioMCPServer):
        def get_tool_to_endpoint(self) -> dict[str, str]:
            found = super().get_tool_to_endpoint()
            # Gradio calls a tool as the function is called, and numbers those that other functions are called as well.
            return {name: event for event in found.values() if (name := event.lstrip("/")) in names}

    gradio.mcp.GradioMCPServer = NamedTools  # type: ignore[misc]
