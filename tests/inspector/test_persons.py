"""One client is one address, whatever it writes of itself."""

from types import SimpleNamespace

import pytest
from starlette.datastructures import Headers

from inspector.persons import PROXIES, count_proxies, identify, tell_address


@pytest.mark.parametrize(
    ("host", "forwarded", "proxies", "address"),
    [
        ("10.0.0.1", "", 0, "10.0.0.1"),
        ("10.0.0.1", "1.2.3.4", 0, "10.0.0.1"),  # nobody has said that there is a proxy
        ("10.0.0.1", "1.2.3.4", 1, "1.2.3.4"),
        ("10.0.0.1", "6.6.6.6, 1.2.3.4", 1, "1.2.3.4"),  # the left one is the client's own word
        ("10.0.0.1", "6.6.6.6,1.2.3.4, 10.0.0.9", 2, "1.2.3.4"),
        ("10.0.0.1", "1.2.3.4", 3, "1.2.3.4"),
        ("10.0.0.1", " , ", 1, "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "", 0, "2001:db8:1:2::/64"),
        ("2001:db8:1:2::99", "", 0, "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "", 0, "fe80::/64"),
        ("::ffff:1.2.3.4", "", 0, "1.2.3.4"),
        ("10.0.0.1", "[2001:db8::1]", 1, "2001:db8::/64"),
        ("", "", 0, ""),
        ("testclient", "", 0, "testclient"),
        ("10.0.0.1", "x" * 500, 1, "x" * 64),
    ],
)
def test_address(host, forwarded, proxies, address):
    assert tell_address(host, forwarded, proxies) == address


@pytest.mark.parametrize(
    ("values", "count"),
    [
        ({}, 0),
        ({"SPACE_ID": "a/b"}, 1),
        ({PROXIES: "2"}, 2),
        ({PROXIES: "2", "SPACE_ID": "a/b"}, 2),
        ({PROXIES: "many"}, 0),
        ({PROXIES: "-1"}, 0),
        ({PROXIES: ""}, 0),
    ],
)
def test_proxies_come_from_the_owner_of_the_server(values, count, monkeypatch):
    for name in (PROXIES, "SPACE_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert count_proxies() == count


def _request(host="10.0.0.1", username=None, **headers):
    client = SimpleNamespace(host=host) if host is not None else None
    return SimpleNamespace(client=client, username=username, headers=Headers(headers))


def test_person(monkeypatch):
    monkeypatch.delenv("SPACE_ID", raising=False)
    monkeypatch.setenv(PROXIES, "1")
    assert identify(_request()) == "address 10.0.0.1"
    assert identify(_request(username="ada")) == "login ada"
    assert identify(_request(**{"x-forwarded-for": "6.6.6.6, 1.2.3.4"})) == "address 1.2.3.4"
    assert identify(_request(host=None)) == "address "
    assert identify(None) == "local"
