"""What the sender does with receivers of every kind, over real sockets."""

import datetime
import ipaddress
import json
import socket
import ssl
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from openai import OpenAI
from receiver import LOOPBACK, Receiver, answer_with
from standardwebhooks import Webhook

from app.models import now
from app.webhooks import sender
from app.webhooks.sender import ANSWER_BYTES, send
from app.webhooks.signing import is_secret, make_secret, sign

ALLOWED = [ipaddress.ip_network(LOOPBACK)]
BODY = b'{"id":"evt_1","type":"fine_tuning.job.succeeded","created_at":1,"data":{"id":"job_1"}}'


@pytest.fixture
def receiver():
    with Receiver() as receiver:
        yield receiver


def post(url, *, seconds=60.0, allowed=ALLOWED, headers=None):
    return send(url, BODY, headers or {}, allowed, seconds)


def drip(connection):
    """One byte every 50 ms, for ever. The status never comes: with it there would be an answer, however late the cut is."""
    for byte in b"HTTP/1.1" + b" " * 10_000:
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


def test_both_libraries_for_receivers_verify_what_arrives(receiver):
    old, new = make_secret(), make_secret()
    assert post(receiver.url(path="/a?b=c"), headers=sign("evt_1", now(), BODY, [new, old])).succeeded
    (got,) = receiver.received
    assert (got.path, got.body, got.headers["host"]) == ("/a?b=c", BODY, f"127.0.0.1:{receiver.port}")
    assert got.headers["content-type"] == "application/json"
    for key in (old, new):
        assert Webhook(key).verify(got.body, got.headers)["data"]["id"] == "job_1"
        event = OpenAI(api_key="x").webhooks.unwrap(got.body, got.headers, secret=key)
        assert (type(event).__name__, event.data.id) == ("FineTuningJobSucceededWebhookEvent", "job_1")
    with pytest.raises(Exception, match="signature"):
        Webhook(make_secret()).verify(got.body, got.headers)
    with pytest.raises(Exception, match="signature"):
        Webhook(new).verify(got.body + b" ", got.headers)


def test_a_secret_has_one_form():
    assert is_secret(make_secret())
    assert not any(map(is_secret, ("", "whsec_", "whsec_c2hvcnQ=", "plain text", "whsec_" + "é" * 32, "whsec_" + "A" * 100)))


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"])
def test_a_redirect_is_not_followed(receiver, status):
    with Receiver() as other:
        receiver.answer = answer_with(status, f"Location: {other.url()}\r\n")
        attempt = post(receiver.url())
        assert (attempt.status_code, attempt.succeeded, other.received) == (int(status[:3]), False, [])


def test_no_proxy_of_the_environment_is_used(receiver, monkeypatch):
    with Receiver() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.url(path=""))
        assert post(receiver.url()).succeeded
        assert (len(receiver.received), proxy.received) == (1, [])


def hang(connection):
    connection.recv(1)


def go_on_continuing(connection):
    while True:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 9)


@pytest.mark.parametrize("answer", [drip, hang, go_on_continuing])
def test_a_receiver_that_takes_too_long_is_left(receiver, answer):
    receiver.answer = answer
    attempt = post(receiver.url(), seconds=0.5)
    assert (attempt.status_code, attempt.error) == (None, "There was no answer within 0.5 seconds.")
    assert attempt.duration_seconds < 60, "the slowest answer takes minutes"


def test_a_receiver_that_accepts_and_never_reads_is_left():
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        assert send(url, b" " * 30_000_000, {}, ALLOWED, 0.5).error == "There was no answer within 0.5 seconds."


def test_of_a_huge_answer_only_the_beginning_is_read(receiver):
    sent = []

    def flood(connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")
        while True:
            sent.append(connection.send(b"\x00\xff" * 65536))

    receiver.answer = flood
    attempt = post(receiver.url())
    assert attempt.succeeded
    assert attempt.answer is not None
    assert len(attempt.answer) == ANSWER_BYTES
    assert set(attempt.answer) == {"\ufffd"}
    assert sum(sent) < 50_000_000


@pytest.mark.parametrize(
    "answer",
    [b"", b"\0" * 100, b"SSH-2.0-x\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 999, b"H" * 99999],
)
def test_what_is_no_answer_is_an_error(receiver, answer):
    receiver.answer = answer
    attempt = post(receiver.url())
    assert (attempt.status_code, attempt.succeeded) == (None, False)
    assert attempt.error


def test_a_success_counts_though_its_body_breaks_off(receiver):
    receiver.answer = b"HTTP/1.1 204 No Content\r\n\r\n"
    assert post(receiver.url()).status_code == 204
    receiver.answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
    assert post(receiver.url()).status_code == 200


def test_a_refused_connection_is_an_error():
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # and does not listen, but nobody else gets the port
        assert post(f"http://127.0.0.1:{deaf.getsockname()[1]}/").error == "Connection refused."


def test_without_leave_nothing_private_is_connected_to(receiver):
    assert "https:// is needed" in post(receiver.url(), allowed=[]).error
    other = [ipaddress.ip_network("10.0.0.0/8")]
    assert "only https" in post(receiver.url(), allowed=other).error
    assert "not a public address" in post(f"https://127.0.0.1:{receiver.port}/", allowed=other).error
    assert "not a public address" in post(f"https://localhost:{receiver.port}/", allowed=[]).error
    assert receiver.received == []


def test_a_name_is_looked_up_once_and_the_checked_address_is_connected_to(receiver, monkeypatch):
    """A name that changes its address between the look and the connection: the second look would lead elsewhere."""
    looks = []

    def resolve(host, port, *_, **__):
        looks.append(host)
        address = "127.0.0.1" if looks.count("rebinding.test") < 2 else "127.0.0.99"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address if host == "rebinding.test" else host, port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert post(receiver.url("rebinding.test")).succeeded
    assert looks.count("rebinding.test") == 1
    assert set(looks) <= {"rebinding.test", "127.0.0.1"}
    assert receiver.received[0].headers["host"] == f"rebinding.test:{receiver.port}"


@pytest.mark.parametrize("bad", ["127.0.0.1", "10.0.0.1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "169.254.169.254"])
def test_one_bad_address_of_several_is_enough(receiver, monkeypatch, bad):
    kinds = {4: socket.AF_INET, 6: socket.AF_INET6}

    def resolve(host, port, *_, **__):
        return [(kinds[ipaddress.ip_address(a).version], socket.SOCK_STREAM, 6, "", (a, port)) for a in ("93.184.216.34", bad)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    attempt = post(f"https://mixed.test:{receiver.port}/", allowed=[])
    assert "mixed.test leads to" in attempt.error
    assert receiver.received == []


@pytest.fixture
def make_certificate(tmp_path, monkeypatch):
    """A receiver's TLS context for a name, by an authority that the sender trusts."""
    sender.trust.cache_clear()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))

    def make(name):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(start)
        builder = builder.not_valid_after(start + datetime.timedelta(days=9))
        names = x509.SubjectAlternativeName([x509.DNSName(name)])
        builder = builder.add_extension(names, critical=False).add_extension(x509.BasicConstraints(True, None), critical=True)
        certificate = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (tmp_path / "authority.pem").write_bytes(certificate)
        (tmp_path / "both.pem").write_bytes(certificate + key.private_bytes(*plain))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "both.pem")
        return context

    yield make
    sender.trust.cache_clear()


def test_the_certificate_must_be_for_the_name(make_certificate, monkeypatch):
    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda _, *others, **named: resolve("127.0.0.1", *others, **named))
    with Receiver(context=make_certificate("right.test")) as receiver:
        assert post(receiver.url("right.test")).succeeded
        assert "certificate was refused: Hostname mismatch" in post(receiver.url("wrong.test")).error
        assert "certificate was refused" in post(receiver.url()).error
        sender.trust.cache_clear()
        monkeypatch.delenv("SSL_CERT_FILE")
        assert "certificate was refused" in post(receiver.url("right.test")).error
        assert len(receiver.received) == 1
    with Receiver() as plain:
        assert post(plain.url("right.test").replace("http:", "https:")).error
        assert plain.received == []


def test_a_tls_handshake_that_never_ends_is_left():
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"https://127.0.0.1:{server.getsockname()[1]}/"
        assert post(url, seconds=0.5).error == "There was no answer within 0.5 seconds."


def test_a_body_is_sent_as_it_was_signed(receiver):
    assert json.loads(BODY)["id"] == "evt_1"
    post(receiver.url())
    assert receiver.received[0].headers["content-length"] == str(len(BODY))
