"""Exit 0 when the server in this container is alive: asks it over loopback, whatever it is bound to."""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import sys

ANYWHERE = {"": "127.0.0.1", "localhost": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
SECONDS = 2


def find_fault(host: str, port: int) -> str:
    """Return what is wrong with the server, "" when nothing is; raises OSError and HTTPException."""
    # The certificate is for the name that clients use, so on loopback it is not checked.
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if os.environ.get("HOMEOSTAT_TLS_CLIENT_CA"):
        # Without a client's certificate this is as far as it goes: in TLS 1.3 the server's half of the handshake,
        # which a worker computes, comes before the server asks who we are.
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        with socket.create_connection((host, port), SECONDS) as raw, context.wrap_socket(raw):
            return ""
    connection = http.client.HTTPConnection(host, port, timeout=SECONDS)
    if os.environ.get("HOMEOSTAT_TLS_CERTIFICATE"):
        connection = http.client.HTTPSConnection(host, port, timeout=SECONDS, context=context)
    connection.request("GET", "/v2/health/live")
    status = connection.getresponse().status
    return "" if status == 200 else f"answered {status}"


def main() -> int:
    """Ask, and say on stderr what is wrong."""
    host = os.environ.get("HOMEOSTAT_HOST", "")
    host, port = ANYWHERE.get(host, host), int(os.environ.get("HOMEOSTAT_PORT", "8080"))
    try:
        fault = find_fault(host, port)
    except (OSError, http.client.HTTPException) as error:
        fault = str(error)
    if fault:
        sys.stderr.write(f"{host} port {port}: {fault}\n")
    return 1 if fault else 0


if __name__ == "__main__":
    sys.exit(main())
