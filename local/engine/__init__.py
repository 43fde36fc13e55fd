"""The task engine: a Docker Engine HTTP API whose containers are local processes, forked from a warm parent.

Runs beside the AWS emulator, whose ECS starts tasks through `DOCKER_HOST`; must not know ECS, experiments or
torch.

One request's way through the modules: `http_server` (bytes to requests) → `api` (Docker's routes and
documents) → `containers` (state, names, addresses, logs) → `launcher` (this side of a socket pair) → `zygote`
(the warm parent at its other side, which forks). Linux only: loopback /8, process groups, PR_SET_PDEATHSIG
and pidfd are its tools.
"""
