"""The embedded cloud: the AWS emulator, the engine that runs its tasks, and the deployment onto both.

Runs on a developer's or CI machine only; nothing in here is deployed to AWS.
"""
