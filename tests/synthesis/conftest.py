"""Engines that take long to start are started once for all tests of this folder."""

from pathlib import Path

import pytest

from synthesis.local_engine import LocalEngine
from tests.conftest import make_adapter
from tests.synthesis.engines import NANO, openai_engine, vllm_engine, vllm_server
from tests.synthesis.small_server import Server


@pytest.fixture(scope="session")
def nano_adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The adapter that comes with the embedded model, and a strong random one."""
    return [NANO / "instruct", make_adapter(NANO, tmp_path_factory.mktemp("random"), seed=3)]


@pytest.fixture(scope="session")
def local():
    return LocalEngine(NANO, device="cpu")


@pytest.fixture(scope="session")
def vllm(nano_adapters):
    engine = vllm_engine(nano_adapters)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory):
    with vllm_server(tmp_path_factory.mktemp("server")) as url:
        yield url


@pytest.fixture(scope="session")
def openai(server_url):
    engine = openai_engine(server_url)
    yield engine
    engine.close()


@pytest.fixture
def serving():
    servers = []

    def serve(manner=lambda text, times: None):
        servers.append(Server(manner))
        return servers[-1]

    yield serve
    for server in servers:
        server.http.shutdown()
