"""The functions of the state machine and of the metric pipeline, one folder each, named like their state.

Run as AWS Lambda functions. Know neither torch nor gRPC nor how they are deployed.
"""
