"""A Prefect worker that registers every deployment of prefect.yaml before it takes work."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import httpx

POOL = "homeostat"


def main() -> None:
    """Wait for the Prefect server, make the process pool, deploy all, then become the worker."""
    api = os.environ["PREFECT_API_URL"]
    with httpx.Client(timeout=2, trust_env=False) as client:
        deadline = time.monotonic() + 120
        while True:
            try:
                if client.get(f"{api}/health").is_success:
                    break
            except httpx.TransportError as error:
                if time.monotonic() > deadline:
                    sys.exit(f"no Prefect server at {api} after 120 s: {error}")
            time.sleep(0.2)
        made = client.post(f"{api}/work_pools/", json={"name": POOL, "type": "process"})
        if made.status_code not in (201, 409):  # 409: it is there already
            sys.exit(f"{api}: cannot make the work pool {POOL!r}: {made.status_code} {made.text}")
    print("registering the deployments of prefect.yaml", flush=True)
    done = subprocess.run(
        ["prefect", "--no-prompt", "deploy", "--all"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"prefect deploy --all: exit {done.returncode}\n{done.stdout}")
    print(f"{done.stdout.count('successfully created')} deployments registered", flush=True)
    os.execvp(  # noqa: S606 - the worker takes this process over
        "prefect", ["prefect", "worker", "start", "--pool", POOL, "--name", f"{POOL}-{os.getpid()}", "--limit", "4"]
    )


if __name__ == "__main__":
    main()
