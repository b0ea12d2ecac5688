"""The embedded broker on its own."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from small_disk import fill, mounted

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
    deadline = time.monotonic() + 60
    while first.is_alive:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_takes_messages_when_its_disk_is_full(settings: Settings, tmp_path: Path) -> None:
    """A full disk must not silence the bells: the server refuses every change once it cannot write its file."""
    with mounted(tmp_path / "small", 1 << 20) as folder:
        broker = Broker(settings.broker_socket, folder, settings.root / "broker.log")
        broker.start()
        fill(folder)
        client = redis.Redis(unix_socket_path=str(settings.broker_socket))
        for _ in range(50):
            client.lpush("gpu", "message" * 1000)
        assert client.llen("gpu") == 50
        broker.stop()


def test_only_the_user_may_enter_the_sockets_folder(
    brokers: tuple[Broker, Broker], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    brokers[0].start()
    folder, me = settings.broker_socket.parent, os.getuid()
    assert folder.stat().st_mode & 0o777 == 0o700
    with monkeypatch.context() as patch:  # nobody can give a file away everywhere, not even root
        patch.setattr(os, "getuid", lambda: me + 1)
        with pytest.raises(BrokerFailure, match="belongs to another user"):
            make_private(folder)
