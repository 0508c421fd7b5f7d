"""A server as strangers meet it, in a process of its own, on this machine alone."""

import secrets
from collections.abc import Iterator

import pytest

from scripts.public_server import PublicServer, run_public_server
from scripts.stranger import Stranger

SECRET = "not-for-strangers-" + secrets.token_hex(8)
"""The owner's token for the hub, in the server's environment."""


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PublicServer]:
    with run_public_server(tmp_path_factory.mktemp("server"), HF_TOKEN=SECRET, OMP_NUM_THREADS="1") as running:
        yield running


@pytest.fixture
def stranger(server: PublicServer) -> Iterator[Stranger]:
    """One client of the server that keeps to no rule of gradio's."""
    with Stranger(server.url) as one:
        yield one
