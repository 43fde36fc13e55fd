"""The words that controller, runtime and report share.

Imported everywhere, imports nothing of ours. Knows no AWS SDK, no torch, no gRPC.
"""
