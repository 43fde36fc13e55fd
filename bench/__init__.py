"""Side-by-side measurements of Lockstep against its peers.

Runs on one machine, by hand: `make bench`. Nobody imports it; it sees the runtime and the contract, never the cloud.
"""
