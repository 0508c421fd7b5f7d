"""Who somebody is, as far as a server can know: by login, else by the address that the connection came from.

What a client writes itself (a name in the browser's storage, a session, a header) is no proof of anything. A proxy's
``X-Forwarded-For`` counts only where the server's owner says how many proxies stand before it, for each of them appends
one entry and everything to the left of those is the client's own word. No gradio here.
"""

from __future__ import annotations

import ipaddress
import os
from typing import Any

PROXIES = "VLM_INSPECTOR_PROXIES"
"""Environment variable: how many proxies stand before this server. Default 0, on a Space 1."""


def count_proxies() -> int:
    """From the environment; 0 for what is no whole number."""
    text = os.environ.get(PROXIES, "1" if "SPACE_ID" in os.environ else "0")
    return int(text) if text.isdecimal() else 0


def tell_address(host: str, forwarded: str, proxies: int) -> str:
    """The address that counts as one client. ``host``: the other end of the connection; ``forwarded``: the value of
    X-Forwarded-For (several headers joined by commas), of which the entry that the outermost of ``proxies`` wrote is
    taken. An IPv6 network of 64 bits is one client: its owner has all its addresses."""
    entries = [entry.strip() for entry in forwarded.split(",") if entry.strip()]
    if proxies and entries:
        host = entries[-min(proxies, len(entries))]
    bare = host.strip("[]").split("%")[0]
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        return host[:64]
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def identify(request: Any) -> str:
    """The person behind a request of gradio's (``gr.Request``) or Starlette's: the login where there is one, else the
    address. An event that comes from no request (a program in the same process) is the person “local”."""
    if request is None:
        return "local"
    if name := getattr(request, "username", None):
        return f"login {name}"
    client = request.client
    headers = request.headers
    every = headers.getlist("x-forwarded-for") if hasattr(headers, "getlist") else [headers.get("x-forwarded-for", "")]
    return f"address {tell_address(client.host if client else '', ','.join(every), count_proxies())}"
