"""Build hook: compiles the .proto files of the gRPC protocols into one descriptor set, which the package loads."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = "homeostat/serving/protos"
COMPILED = "protocols.binpb"


class DescriptorSet(BuildHookInterface[Any]):
    """Runs for the wheel, the source distribution and the editable install alike."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the descriptor set beside the .proto files, and ship it although git ignores it."""
        del version
        import grpc_tools
        from grpc_tools import protoc

        folder = Path(self.root, FOLDER)
        standard = Path(grpc_tools.__file__).parent / "_proto"
        files = sorted(path.name for path in folder.glob("*.proto"))
        arguments = ["protoc", f"--proto_path={folder}", f"--proto_path={standard}", "--include_imports"]
        if protoc.main([*arguments, f"--descriptor_set_out={folder / COMPILED}", *files]) != 0:
            raise RuntimeError(f"protoc cannot compile {', '.join(files)} in {folder}; its messages stand above")
        build_data["artifacts"].append(f"{FOLDER}/{COMPILED}")
