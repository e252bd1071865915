"""Where the server may listen, and what of TLS is refused, each with its remedy."""

from __future__ import annotations

import ssl

import pytest

from homeostat.errors import ConfigError
from homeostat.serving.access.exposure import check_exposure, make_tls, parse_host, read_certificate, trusted_proxies
from homeostat.settings import Settings
from tests.certificates import Authority


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"))


def test_loopback_is_open_and_the_rest_needs_keys_and_tls(authority):
    certificate, key = authority.sign("server")
    check_exposure(Settings(host="127.0.0.1"), authenticated=False)
    check_exposure(Settings(host="::1"), authenticated=False)
    away = Settings(host="0.0.0.0")
    with pytest.raises(ConfigError, match="homeostat key create"):
        check_exposure(away, authenticated=False)
    with pytest.raises(ConfigError, match="HOMEOSTAT_TLS_CERTIFICATE"):
        check_exposure(away, authenticated=True)
    check_exposure(Settings(host="0.0.0.0", tls_certificate=certificate, tls_key=key), authenticated=True)
    check_exposure(Settings(host="0.0.0.0", behind_proxy="10.0.0.1"), authenticated=True)


@pytest.mark.parametrize("host", ["", "example.com", "127.0.0.1:80", "0.0.0"])
def test_a_host_must_be_an_address(host):
    with pytest.raises(ConfigError, match="is not an IP address"):
        parse_host(host)


def test_a_proxy_is_an_address_or_a_network():
    assert trusted_proxies(Settings(behind_proxy=" 127.0.0.1, 10.0.0.0/24 ")) == ["127.0.0.1", "10.0.0.0/24"]
    for wrong in ("*", "proxy", "10.0.0.1/8"):
        with pytest.raises(ConfigError, match="HOMEOSTAT_BEHIND_PROXY"):
            trusted_proxies(Settings(behind_proxy=wrong))


def test_tls_is_whole_or_refused(authority, tmp_path):
    certificate, key = authority.sign("whole")
    assert make_tls(Settings()) is None
    assert read_certificate(Settings()) is None
    context = make_tls(Settings(tls_certificate=certificate, tls_key=key, tls_client_ca=authority.certificate))
    assert (context.minimum_version, context.verify_mode) == (ssl.TLSVersion.TLSv1_2, ssl.CERT_REQUIRED)
    _, other = authority.sign("other")
    broken = tmp_path / "broken.pem"
    broken.write_text("no PEM")
    for settings, words in [
        ({"tls_certificate": certificate}, "without HOMEOSTAT_TLS_KEY"),
        ({"tls_key": key}, "without HOMEOSTAT_TLS_CERTIFICATE"),
        ({"tls_client_ca": authority.certificate}, "without HOMEOSTAT_TLS_CERTIFICATE"),
        ({"tls_certificate": certificate, "tls_key": other}, "cannot be used"),
        ({"tls_certificate": broken, "tls_key": key}, "cannot be used"),
        ({"tls_certificate": certificate, "tls_key": tmp_path / "none"}, "cannot be used"),
        ({"tls_certificate": certificate, "tls_key": key, "tls_client_ca": broken}, "HOMEOSTAT_TLS_CLIENT_CA"),
    ]:
        with pytest.raises(ConfigError, match=words):
            make_tls(Settings(**settings))
