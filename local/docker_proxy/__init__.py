"""The Docker proxy: the real Docker engine's API as the emulator may use it, with containers in the host's network.

Runs beside the AWS emulator, in the task engine's place; must not know ECS, experiments or how images are built.

Why a proxy: MiniStack would give tasks `http://host.docker.internal` as the address of AWS and of their role's
credentials. AWS SDKs refuse credentials from a host that is not loopback, and the emulator would have to listen where
the network reaches it. So every container shares the host's network, finds AWS on 127.0.0.1, and gets a loopback
address of its own (TASK_ADDRESS) to serve at, just as the task engine's processes do; the runtime sees no difference.
Why not a second backend behind the task engine's API: the real engine speaks that API already. Logs, states, exit
codes and errors pass as it says them. Only a container's creation, lists and what is said of its address change, and
an inspect of a running container may wait (`local.engine.polling`).
A Unix socket, not a port: whoever may use Docker may do anything on the machine, so the proxy is for its owner only.

One request's way: `local.engine.http_server` (bytes to requests) → `proxy` (which requests are special) →
`rewriting` (what becomes of those) → `upstream` (the real engine). `sweep` removes what a cloud leaves behind.
"""
