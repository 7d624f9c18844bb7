"""A storage service on this machine, which all clients are pointed at."""

import bucket_server
import pytest


@pytest.fixture(scope="session")
def service():
    """The address of the service and its objects."""
    with bucket_server.serving() as (address, objects):
        yield address, objects


@pytest.fixture
def objects(service, tmp_path, monkeypatch):
    """The objects of the service; no bucket holds any."""
    address, objects = service
    for name, value in bucket_server.environment(address).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OPTIML_COPIES", str(tmp_path / "copies"))
    objects.content.clear()
    return objects
