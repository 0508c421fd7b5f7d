"""Who somebody is, as far as a server can know: by login, else by the address that the connection came from.

What a client writes itself (a name in the browser's storage, a session, a header) is no proof of anything. A proxy's
``X-Forwarded-For`` counts only where the server's owner says how many proxies stand before it, for each of them appends
one entry and everything to the left of those is the client's own word. No gradio here.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import MutableMapping
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


def believe(scope: MutableMapping[str, Any], proxies: int) -> str:
    """Makes of an ASGI ``scope`` what may be believed of it, for all that read it later: its client is the address of
    :func:`tell_address`, which is returned, and of the headers in :data:`_NAMES` that is left which the outermost of
    ``proxies`` wrote. (X-Forwarded-Proto stays: it says no more than that the page was asked for by https.)"""
    said: dict[bytes, list[str]] = {name: [] for name in _NAMES}
    headers = []
    for name, value in scope["headers"]:
        if (low := name.lower()) in said:
            said[low] += [entry.strip() for entry in value.decode("latin-1").split(",") if entry.strip()]
        else:
            headers.append((name, value))
    if proxies and (hosts := said[_HOST]):
        headers.append((_HOST, hosts[-min(proxies, len(hosts))].encode("latin-1")))
    scope["headers"] = headers
    host, port = scope.get("client") or ("", 0)
    address = tell_address(host, ",".join(said[_FOR]), proxies)
    scope["client"] = address, port
    return address


_FOR, _HOST = b"x-forwarded-for", b"x-forwarded-host"
# The last is gradio's own, for a server of pages in front of this one; there is none here.
_NAMES = (_FOR, _HOST, b"x-gradio-server")


def identify(request: Any, username: str | None = None) -> str:
    """The person behind a request of gradio's (``gr.Request``) or Starlette's that came through :func:`believe`: the
    login where there is one (``username``, or the request's), else the address. An event that comes from no request (a
    program in the same process) is the person “local”."""
    if request is None:
        return "local"
    if name := username or getattr(request, "username", None):
        return f"login {name}"
    return f"address {request.client.host if request.client else ''}"
