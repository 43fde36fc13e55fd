"""The generated code is what the protocol says."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_generated_code_is_up_to_date(tmp_path: Path) -> None:
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", "-Iruntime/wire=proto"),
            *(f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")),
            "proto/parameter_server.proto",
        ],
        cwd=REPOSITORY,
        check=True,
    )
    fresh = {path.name: path.read_text() for path in (tmp_path / "runtime" / "wire").iterdir()}
    committed = {path.name: path.read_text() for path in (REPOSITORY / "runtime" / "wire").glob("*.py*")}
    assert set(fresh) == {f"parameter_server_pb2{suffix}" for suffix in (".py", ".pyi", "_grpc.py")}
    assert fresh == committed
