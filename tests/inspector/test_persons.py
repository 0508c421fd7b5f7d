"""One client is one address, whatever it writes of itself."""

from types import SimpleNamespace

import pytest

from inspector.persons import PROXIES, believe, count_proxies, identify, tell_address


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


def _request(host="10.0.0.1", username=None):
    return SimpleNamespace(client=SimpleNamespace(host=host) if host is not None else None, username=username)


@pytest.mark.parametrize(
    ("proxies", "address", "host"),
    [
        (0, "10.0.0.1", None),
        (1, "1.2.3.4", "inspector.example"),
        (2, "6.6.6.6", "evil.example"),  # so says the first of two proxies, to be believed
        (9, "6.6.6.6", "evil.example"),
    ],
)
def test_of_what_a_request_says_that_is_left_which_a_proxy_wrote(proxies, address, host):
    said = [
        (b"Host", b"here.example"),
        (b"X-Forwarded-Host", b"evil.example"),
        (b"x-forwarded-host", b"inspector.example"),
        (b"X-Forwarded-For", b"6.6.6.6, 1.2.3.4"),
        (b"X-Gradio-Server", b"http://evil.example"),
        (b"x-forwarded-proto", b"https"),
    ]
    scope = {"client": ("10.0.0.1", 7), "headers": said}
    assert believe(scope, proxies) == address
    assert scope["client"] == (address, 7)
    kept = dict(scope["headers"])
    assert kept.pop(b"x-forwarded-host", None) == (host and host.encode())
    assert kept == {b"Host": b"here.example", b"x-forwarded-proto": b"https"}


def test_nobody_at_the_other_end():
    scope = {"client": None, "headers": []}
    assert believe(scope, 1) == ""


def test_person():
    assert identify(_request()) == "address 10.0.0.1"
    assert identify(_request(username="ada")) == "login ada"
    assert identify(_request(host=None)) == "address "
    assert identify(None) == "local"
