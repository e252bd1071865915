"""A Prefect worker that registers every deployment of prefect.yaml before it takes work."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import httpx
import psutil

POOL = "homeostat"
UNFINISHED = ("PENDING", "RUNNING", "CANCELLING")


def running_flow_runs() -> set[str]:
    """Return the ids of the flow runs that have a process on this machine."""
    found = set()
    for process in psutil.process_iter():
        try:
            found.add(process.environ().get("PREFECT__FLOW_RUN_ID", ""))
        except psutil.Error:  # another user's, or it has just ended
            continue
    return found - {""}


def bury_flow_runs(client: httpx.Client, api: str) -> int:
    """Call the flow runs that a stop has cut off crashed, and return how many; their slots are free again.

    Prefect learns of the end of a run from its worker, and an interrupted stack has none: the run would
    be RUNNING for ever, and the deployment's limit of one would keep every later run waiting. Prefect
    is on loopback here, so each run that has begun has its process on this machine. Raises httpx.HTTPError.
    """
    alive = running_flow_runs()
    asked = {"flow_runs": {"state": {"type": {"any_": UNFINISHED}}}, "limit": 200}
    found = client.post(f"{api}/flow_runs/filter", json=asked).raise_for_status().json()
    buried = 0
    for run in found:
        if run["id"] in alive or (alive and run["parent_task_run_id"]):  # a subflow runs in its parent's process
            continue
        state = {"type": "CRASHED", "name": "Crashed", "message": "its process ended with the stack that ran it"}
        client.post(f"{api}/flow_runs/{run['id']}/set_state", json={"state": state, "force": True}).raise_for_status()
        buried += 1
    return buried


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
        if buried := bury_flow_runs(client, api):
            print(f"{buried} flow runs that were cut off are called crashed: pipeline_id continues them", flush=True)
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
