"""Where webhooks may go, and where they may not."""

import ipaddress

import pytest

from app.webhooks.addresses import UnsafeTarget, check_address, parse_url

PRIVATE = [
    "127.0.0.1", "127.8.8.8", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "100.100.100.200",
    "0.0.0.0", "0.1.2.3", "192.0.0.192", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "192.88.99.1", "224.0.0.1",
    "239.255.255.250", "240.0.0.1", "255.255.255.255", "168.63.129.16",
    "::1", "::", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:7f00:1", "::ffff:169.254.169.254", "::ffff:0:0", "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1", "2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:0:7f00:1::", "2001:db8::1",
    "fe80::1", "fe80::1%eth0", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "3fff::1", "5f00::1", "100::1", "2001:10::1",
]  # fmt: skip
PUBLIC = ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "::ffff:8.8.8.8"]


def url_of(address, scheme="https"):
    return f"{scheme}://[{address}]/hook" if ":" in address else f"{scheme}://{address}/hook"


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public_is_refused_as_a_literal_and_behind_a_name(address):
    if "%" not in address:
        with pytest.raises(UnsafeTarget):
            parse_url(url_of(address), ())
    with pytest.raises(UnsafeTarget):
        check_address(ipaddress.ip_address(address), parse_url("https://example.com/", ()), ())


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_taken_by_https_alone(address):
    parse_url(url_of(address), ())
    allowed = [ipaddress.ip_network("10.0.0.0/8")]
    with pytest.raises(UnsafeTarget, match="only https"):
        parse_url(url_of(address, "http"), allowed)
    with pytest.raises(UnsafeTarget, match="https:// is needed"):
        parse_url(url_of(address, "http"), ())


@pytest.mark.parametrize("address", ["10.1.2.3", "::ffff:10.1.2.3"])
def test_an_allowed_network_is_open_for_both_in_every_form_of_its_addresses(address):
    allowed = [ipaddress.ip_network("10.0.0.0/8")]
    for scheme in ("http", "https"):
        assert parse_url(url_of(address, scheme), allowed).scheme == scheme
        with pytest.raises(UnsafeTarget):
            parse_url(url_of("192.168.1.1", scheme), allowed)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/", "https:/example.com", "https://", "https:///x", "//example.com/", "example.com/hook", "",
        "https://user@example.com/", "https://user:password@example.com/", "https://example.com/#part", "https://exa mple.com/",
        "https://example.com/\r\nX: y", "https://example.com\\@127.0.0.1/", "https://exämple.com/", "https://example.com:22/",
        "https://example.com:0/", "https://example.com:99999/", "https://example.com:x/", "https://[::1/", "https://[::1]x/",
        "https://127.1/", "https://2130706433/", "https://0x7f000001/", "https://0177.0.0.1/", "https://127.0.0.1./",
        "https://1.2.3.4.5/", "https://0x7f.1/", "https://-a.com/", "https://a..b/", "https://%31%32%37.0.0.1/",
        "https://example.com/" + "a" * 2048, "https://example.com/\x00", "file:///etc/passwd", "gopher://example.com/",
    ],
)  # fmt: skip
def test_a_url_of_another_form_is_refused(url):
    with pytest.raises(UnsafeTarget):
        parse_url(url, [ipaddress.ip_network("0.0.0.0/0")])


def test_a_url_is_taken_apart():
    target = parse_url("HTTPS://Hooks.Example.com:8443/a/b?c=d&e", ())
    assert (target.scheme, target.host, target.port, target.path) == ("https", "hooks.example.com", 8443, "/a/b?c=d&e")
    assert target.authority == "hooks.example.com:8443"
    assert parse_url("https://[2606:4700:4700::1111]", ()).authority == "[2606:4700:4700::1111]"
