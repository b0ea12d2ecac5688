"""A webhook receiver on a loopback socket that answers as each test wants, also in ways that no HTTP library would."""

import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

LOOPBACK = "127.0.0.0/8"


def answer_with(status: str = "200 OK", headers: str = "", body: bytes = b"ok") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


@dataclass
class Received:
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """`answer` is bytes, or a function of the connection that sends what it likes."""

    answer: bytes | Callable[[socket.socket], None] = field(default_factory=answer_with)
    context: ssl.SSLContext | None = None
    received: list[Received] = field(default_factory=list)

    def __enter__(self):
        self.stopped = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()  # once closed, the socket's number may be that of another
        self._socket.close()

    def url(self, host: str = "127.0.0.1", path: str = "/hook") -> str:
        return f"{'https' if self.context else 'http'}://{host}:{self.port}{path}"

    def _serve(self):
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._attend, args=[connection], daemon=True).start()

    def _attend(self, connection):
        try:
            if self.context:
                connection = self.context.wrap_socket(connection, server_side=True)
            with connection, connection.makefile("rb") as file:
                path = file.readline().decode().split()[1]
                lines = iter(lambda: file.readline().decode().strip(), "")
                headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
                self.received.append(Received(path, headers, file.read(int(headers["content-length"]))))
                if callable(self.answer):
                    self.answer(connection)
                else:
                    connection.sendall(self.answer)
        except (OSError, IndexError, UnicodeDecodeError):
            return
