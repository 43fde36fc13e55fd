"""Entry points that the task engine's tests run as containers: one word of command, one behaviour."""

# ruff: noqa: T201 - what a container prints is what the tests are about
from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

IMPORTED_BY = os.getpid()


def main(argv: list[str]) -> int | None:
    """Do what the command's first word says."""
    word, *rest = argv
    return globals()[f"do_{word}"](*rest)  # type: ignore[no-any-return]  # looked up by name


def do_say(text: str, code: str = "0") -> int:
    print(text)
    print(f"{text} on stderr", file=sys.stderr)
    return int(code)


def do_sleep(seconds: str = "60") -> None:
    print("sleeping")
    time.sleep(float(seconds))


def do_stubborn() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("will not go")
    time.sleep(60)


def do_polite() -> None:
    def leave(_number: int, _frame: FrameType | None) -> None:
        os.write(1, b"leaving\n")  # print refuses where the signal came in the middle of one
        sys.exit(7)

    signal.signal(signal.SIGTERM, leave)
    print("waiting")
    time.sleep(60)


def do_family() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print(f"child {child.pid}")
    time.sleep(60)


def do_crash() -> None:
    raise LookupError("no such luck")


def do_leave(message: str) -> None:
    sys.exit(message)


def do_big(size: str) -> None:
    print("x" * int(size))
    print("small")


def do_flood(lines: str) -> None:
    for number in range(int(lines)):
        print(f"line {number}")


def do_unfinished() -> None:
    sys.stdout.write("no newline at the end")


def do_report(*_words: str) -> None:
    """What a container can see of the world it was forked from."""
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            links.append(str(descriptor.readlink()))
        except OSError:  # the one that lists
            continue
    print(
        json.dumps(
            {
                "environment": dict(os.environ),
                "first_environment": Path("/proc/self/environ").read_bytes().decode(errors="replace"),
                "descriptors": links,
                "forked": os.getppid() == IMPORTED_BY,
                "session": os.getsid(0) == os.getpid(),
                "argv": sys.argv[1:],
                "draw": random.random(),
            }
        )
    )


def do_grpc(role: str, port: str, server: str) -> int:
    """A real gRPC exchange of torch's bytes, both sides forked after the imports."""
    import grpc  # noqa: PLC0415 - only here, so that the other containers fork from a small parent
    import torch  # noqa: PLC0415 - as above

    address = f"{server or os.environ['TASK_ADDRESS']}:{port}"
    if role == "client":
        with grpc.insecure_channel(address) as channel:
            gradient = (
                torch.nn.functional.linear(torch.ones(64, 64), torch.full((64, 64), 2.0)).sum(0).numpy()
            )
            echo = channel.unary_unary("/echo/Echo")(gradient.tobytes(), wait_for_ready=True, timeout=60)
            print(f"echo {bytes(echo) == gradient.tobytes()} {gradient[0]}")
        return 0

    class Echo(grpc.GenericRpcHandler):
        def service(self, _details: object) -> grpc.RpcMethodHandler:
            return grpc.unary_unary_rpc_method_handler(lambda message, _context: message)

    listener = grpc.server(ThreadPoolExecutor(2))
    listener.add_generic_rpc_handlers((Echo(),))
    listener.add_insecure_port(address)
    listener.start()
    print("listening")
    time.sleep(60)
    return 0
