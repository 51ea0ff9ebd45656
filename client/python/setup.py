"""Compiles the API's .proto into src/pseg/descriptors.binpb and takes the version from CMakeLists.txt:
neither is written down twice. protoc is grpcio-tools' (pip brings it) or the one on the PATH."""
import pathlib
import re
import shutil
import subprocess

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PROTOS = ["pseg/v1/pseg.proto", "pseg/v1/batch.proto", "google/rpc/status.proto", "google/rpc/error_details.proto"]


def version() -> str:
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    found = re.search(r"project\(pseg VERSION ([0-9.]+)", text)
    if not found:
        raise SystemExit("no version in CMakeLists.txt: build from a clone of the repository")
    return found.group(1)


def protoc(args: "list[str]") -> None:
    try:
        from grpc_tools import protoc as tools
        import grpc_tools

        well_known = str(pathlib.Path(grpc_tools.__file__).parent / "_proto")
        status = tools.main(["protoc", f"-I{well_known}", *args])
    except ImportError:
        program = shutil.which("protoc")
        if not program:
            raise SystemExit("neither grpcio-tools nor protoc is here; install one of them")
        status = subprocess.run([program, *args]).returncode
    if status:
        raise SystemExit(f"protoc ended with {status}")


class build(build_py):
    def run(self) -> None:
        out = HERE / "src" / "pseg" / "descriptors.binpb"
        protoc([f"-I{ROOT / 'proto'}", "--include_imports", f"--descriptor_set_out={out}", *PROTOS])
        super().run()


setup(version=version(), cmdclass={"build_py": build})
