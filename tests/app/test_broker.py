"""The embedded broker on its own."""

import os
import signal
import time
from collections.abc import Iterator

import pytest
import redis

from app.broker import Broker, BrokerFailure, find_pid, make_private
from app.settings import Settings


@pytest.fixture
def brokers(settings: Settings) -> Iterator[tuple[Broker, Broker]]:
    """Two launchers of the same broker, as two runs of `up` on one data folder."""
    both = tuple(Broker(settings.broker_socket, settings.root / "broker", settings.root / "broker.log") for _ in range(2))
    yield both
    for broker in both:
        broker.stop()


def test_a_live_server_is_adopted_and_stopped(brokers: tuple[Broker, Broker], settings: Settings) -> None:
    first, second = brokers
    assert first.start().startswith("started ")
    pid = find_pid(settings.broker_socket)
    assert second.start() == f"adopted the server with process id {pid}"
    second.stop()
    assert find_pid(settings.broker_socket) is None
    deadline = time.monotonic() + 5
    while first.is_alive:
        assert time.monotonic() < deadline


def test_what_waits_survives_the_server(brokers: tuple[Broker, Broker], settings: Settings) -> None:
    first, second = brokers
    first.start()
    redis.Redis(unix_socket_path=str(settings.broker_socket)).lpush("gpu", "message")
    client = redis.Redis(unix_socket_path=str(settings.broker_socket))
    client.execute_command("WAITAOF", 1, 0, 5000)
    os.kill(find_pid(settings.broker_socket) or 0, signal.SIGKILL)
    first.stop()
    second.start()
    assert client.lrange("gpu", 0, -1) == [b"message"]


def test_only_the_user_may_enter_the_sockets_folder(brokers: tuple[Broker, Broker], settings: Settings) -> None:
    brokers[0].start()
    assert settings.broker_socket.parent.stat().st_mode & 0o777 == 0o700
    if os.getuid() == 0:
        os.chown(settings.broker_socket.parent, 12345, -1)
        with pytest.raises(BrokerFailure, match="belongs to another user"):
            make_private(settings.broker_socket.parent)
