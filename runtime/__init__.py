"""The parameter server and the worker: one image, two roles.

The only package that imports torch and gRPC. Knows nothing of studies, state machines or reports.
"""
