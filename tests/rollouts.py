"""A data plane, a control store and a controller of rollouts in one process, moved by hand."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from homeostat.bundle import load_public_key
from homeostat.config import RolloutConfig
from homeostat.control import progress
from homeostat.control.progress import Why
from homeostat.control.store import ControlStore
from homeostat.errors import ControlUnavailable
from homeostat.records import BundleRef, Rollout
from homeostat.serving.capture.recorder import Recorder
from homeostat.serving.dataplane import DataPlane, InferRequest, InferResponse
from homeostat.serving.metrics import Metrics
from homeostat.serving.repository import Repository
from homeostat.serving.rest.app import App
from homeostat.serving.rollout.controller import Rollouts
from homeostat.serving.rollout.trial import Trial
from tests.bundles import make_bundle
from tests.challengers import classifier

WHY = Why("test", "because")
CANARY = RolloutConfig(strategy="canary", steps=(0.5,), min_requests=1, min_seconds=0.0, bake_seconds=60.0)
SHADOW = RolloutConfig(strategy="shadow", min_requests=1, min_seconds=0.0, bake_seconds=0.0)


class Process:
    """What one server process is made of, without its threads: `sync` and `tick` are its loops."""

    def __init__(self, home: Path, url: str, *, slot: int = 0) -> None:
        self.home, self.url, self.slot = home, url, slot
        self.down = False
        """Whether the control store is out of reach."""
        self.metrics = Metrics()
        self.repository = Repository(
            self.connect, lambda: load_public_key(home), home / "serving", self.metrics, salt=lambda: b"salt"
        )
        self.recorder = Recorder(home / "traffic.db")
        self.plane = DataPlane(self.repository, self.recorder, self.metrics)
        self.rollouts = Rollouts(self.plane, self.connect, home / "serving", slot=slot)
        self.app = App(self.plane)

    def connect(self) -> ControlStore:
        if self.down:
            raise ControlUnavailable("the control store does not answer")
        return ControlStore(self.url)

    def fail(self) -> None:
        """Take the control store away, and what is connected to it."""
        self.down = True
        self.repository._source = self.rollouts._decisions._store = None

    def sync(self) -> None:
        self.repository.poll()

    def tick(self) -> None:
        """Judge, write what was decided, and follow it."""
        self.rollouts.tick()
        self.rollouts._decisions.write()
        self.sync()

    @property
    def trial(self) -> Trial:
        return self.plane.trials["toy"]

    def ask(self, x0: float = 1.0, *, key: str = "", entity: str | None = None, x1: float = 0.0) -> InferResponse:
        """Ask the live version about one row."""
        tensors = {"x": np.array([[x0, x1, 0, 0]], np.float32)}

        async def answer() -> InferResponse:
            return await self.plane.infer(self.plane.find("toy"), InferRequest(tensors, id=key, entity_id=entity))

        return asyncio.run(answer())

    def call(self, path: str, value: Any, **headers: str) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=True)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.post(path, json=value, headers=headers)

        return asyncio.run(send())

    def close(self) -> None:
        self.rollouts.close()
        self.plane.close()


class World:
    """A control store with champion v1 of `toy`, and processes that serve it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self.url = f"sqlite:///{folder}/control.db"
        self.control = ControlStore(self.url)
        self.processes: list[Process] = []
        self.refs: list[BundleRef] = []
        self.control.register_bundle(self.bundle(1, classifier()))
        self.control.promote("toy", 1, expected_generation=0, actor="t", reason="t")

    def bundle(self, version: int, onnx: bytes, config: RolloutConfig = CANARY, **more: Any) -> BundleRef:
        ref = make_bundle(self.home, version, onnx_bytes=onnx, task="classification", rollout=config, **more)
        self.refs.append(ref)
        return ref

    def process(self, *, slot: int = 0, home: str = "home") -> Process:
        """Start one; with another home it has the public key of the first."""
        if home != "home":
            keys = self.folder / home / "keys"
            keys.mkdir(parents=True, exist_ok=True)
            (keys / "signing.pub").write_bytes((self.home / "keys" / "signing.pub").read_bytes())
        made = Process(self.folder / home, self.url, slot=slot)
        self.trust(made)
        made.repository.restore()
        made.sync()
        self.processes.append(made)
        return made

    def start(self, onnx: bytes, config: RolloutConfig = CANARY, version: int = 2, **more: Any) -> Rollout:
        """Start to roll a version out, everywhere."""
        ref = self.bundle(version, onnx, config, **more)
        generation = self.control.generation("toy")
        row = self.control.set_challenger("toy", ref, expected_generation=generation, actor="t", reason="t")
        row = progress.start(self.control, ref, config, WHY, expected_generation=row.generation)
        for one in self.processes:
            self.trust(one)
            one.sync()
        return row

    def trust(self, process: Process) -> None:
        """Spare the preflights: half a second each."""
        for ref in self.refs:
            process.repository._memory.add(ref, batch_invariant=True)

    def close(self) -> None:
        for one in self.processes:
            one.close()
