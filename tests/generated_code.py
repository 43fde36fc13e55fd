"""Regenerate runtime/wire from proto/, or fail where what is committed differs.

`python -m tests.generated_code [--write]`.
"""

import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
WIRE = Path("runtime", "wire")


def generate(into: Path) -> None:
    """Write the Python modules of every .proto file below `into`. Raises RuntimeError when protoc fails."""
    sources = sorted(str(source) for source in (ROOT / "proto").glob("*.proto"))
    outputs = [f"--{kind}={into}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
    # The mapping makes the generated modules import each other as runtime.wire.*.
    status = protoc.main(["protoc", f"-I{WIRE}={ROOT / 'proto'}", *outputs, *sources])
    if status != 0:
        raise RuntimeError(f"protoc ended with status {status}")


def stale() -> list[str]:
    """Names of generated files that differ from what proto/ says now."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = {file.name: file.read_text() for file in Path(folder, WIRE).iterdir()}
    kept = {f.name: f.read_text() for f in (ROOT / WIRE).glob("*_pb2*") if f.is_file()}
    return sorted(name for name in fresh.keys() | kept.keys() if fresh.get(name) != kept.get(name))


def main(argv: list[str]) -> int:
    """Write, or check. Returns the exit status."""
    if "--write" in argv:
        generate(ROOT)
        return 0
    if names := stale():
        sys.stderr.write(f"generated code is stale: {', '.join(names)}; run: make generate\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
