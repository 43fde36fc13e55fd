"""MiniStack as the embedded cloud runs it: what it lacks of the documented behaviour that the stack relies on.

Runs in the emulator's process only. Each module adds one thing and names the AWS page that describes it; nothing here
knows the stack. Where MiniStack has learnt it, the module goes.
"""
