"""Where the server may listen, and its TLS: off loopback only with authentication and encryption."""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass

from homeostat.errors import ConfigError
from homeostat.settings import Settings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def parse_host(host: str) -> Address:
    """Return the address to bind to; raises ConfigError when it is none."""
    try:
        return ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError as error:
        raise ConfigError(f"HOMEOSTAT_HOST={host!r} is not an IP address; use 127.0.0.1") from error


def trusted_proxies(settings: Settings) -> list[str]:
    """Return the addresses and networks whose X-Forwarded-For is believed; raises ConfigError."""
    found = [one.strip() for one in settings.behind_proxy.split(",") if one.strip()]
    for one in found:
        try:
            ipaddress.ip_network(one)
        except ValueError as error:
            raise ConfigError(
                f"HOMEOSTAT_BEHIND_PROXY: {one!r:.60} is no address or network; write 127.0.0.1 or 10.0.0.0/24"
            ) from error
    return found


def check_exposure(settings: Settings, *, authenticated: bool) -> None:
    """Raise ConfigError when the server would be open to, or readable by, more than this machine."""
    if parse_host(settings.host).is_loopback:
        return
    if not authenticated:
        raise ConfigError(
            f"HOMEOSTAT_HOST={settings.host}: without authentication the server binds to loopback alone; make a key "
            "with `homeostat key create NAME`, or set HOMEOSTAT_JWT_KEYS; or use 127.0.0.1"
        )
    if settings.tls_certificate is None and not trusted_proxies(settings):
        raise ConfigError(
            f"HOMEOSTAT_HOST={settings.host}: keys would cross the network unencrypted; set HOMEOSTAT_TLS_CERTIFICATE "
            "and HOMEOSTAT_TLS_KEY, or, where a proxy ends TLS, HOMEOSTAT_BEHIND_PROXY to the proxy's address"
        )


@dataclass(frozen=True)
class Certificate:
    """What gRPC needs for TLS, as PEM: it takes bytes where REST takes a context."""

    chain: bytes
    key: bytes
    client_authority: bytes | None
    """Clients need a certificate of it; None asks for none."""


def read_certificate(settings: Settings) -> Certificate | None:
    """Return the certificate of the settings, None without one; call it behind `make_tls`, which checks it."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    authority = settings.tls_client_ca
    return Certificate(
        settings.tls_certificate.read_bytes(),
        settings.tls_key.read_bytes(),
        authority.read_bytes() if authority else None,
    )


def make_tls(settings: Settings) -> ssl.SSLContext | None:
    """Return the TLS context of the settings (1.2 or newer), None without a certificate; raises ConfigError."""
    certificate, key, authority = settings.tls_certificate, settings.tls_key, settings.tls_client_ca
    if certificate is None:
        if key is not None or authority is not None:
            raise ConfigError("HOMEOSTAT_TLS_KEY or HOMEOSTAT_TLS_CLIENT_CA is set without HOMEOSTAT_TLS_CERTIFICATE")
        return None
    if key is None:
        raise ConfigError("HOMEOSTAT_TLS_CERTIFICATE is set without HOMEOSTAT_TLS_KEY")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    try:
        # an encrypted key would ask for its password on the terminal: an empty one fails instead
        context.load_cert_chain(certificate, key, password="")
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"the certificate {certificate} and the key {key} cannot be used: {error}") from error
    if authority is not None:
        try:
            context.load_verify_locations(authority)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"HOMEOSTAT_TLS_CLIENT_CA: {authority} cannot be used: {error}") from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context
