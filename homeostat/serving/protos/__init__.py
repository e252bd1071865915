"""The messages and services of the gRPC protocols, in a descriptor pool of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from homeostat.errors import ConfigError

COMPILED = Path(__file__).with_name("protocols.binpb")
"""The .proto files beside this module, as the build compiled them."""


def _load() -> descriptor_pool.DescriptorPool:
    """Return a pool with the compiled files; raises ConfigError when they are not there.

    Not protobuf's default pool: the names are TensorFlow's and Triton's too, and a process that
    imports one of them beside this module would define them twice.
    """
    if not COMPILED.is_file():
        raise ConfigError(f"{COMPILED} was not built; run `make setup`, or install the package again")
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(COMPILED.read_bytes()).file:
        pool.Add(file)
    return pool


POOL = _load()


def message(name: str) -> Any:
    """Return the class of a message by its full name; raises KeyError when there is none."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(name))


def service(name: str) -> Any:
    """Return the descriptor of a service by its full name; raises KeyError when there is none."""
    return POOL.FindServiceByName(name)
