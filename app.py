"""The CDK app: one stack. `cdk synth` and `cdk deploy` start here; synthesis makes no AWS call."""

import aws_cdk as cdk

from cdk.stack import LockstepStack

app = cdk.App()
LockstepStack(
    app, app.node.try_get_context("stack_name") or "Lockstep", description="Parameter-server experiments"
)
app.synth()
