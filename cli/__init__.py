"""The `lockstep` command: start a cloud on this machine, run studies there or on AWS, fetch their results.

Runs on the user's machine; speaks to a deployment through AWS APIs alone, the embedded cloud's or AWS's.
"""
