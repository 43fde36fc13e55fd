"""The CDK app: one stack. `cdk synth` and `cdk deploy` start here; synthesis makes no AWS call."""

import sys

import aws_cdk as cdk

from cdk.settings import Settings, SettingsRefused
from cdk.stack import LockstepStack

FEATURE_FLAGS = {
    "@aws-cdk/core:checkSecretUsage": True,
    "@aws-cdk/aws-s3:serverAccessLogsUseBucketPolicy": True,
}
"""Here and not in cdk.json, which the CDK's command line alone reads: the template is the same without it."""


def application() -> cdk.App:
    """The app, settings read and stack in place. Ends the process with one message where a setting is wrong."""
    app = cdk.App(context=FEATURE_FLAGS)
    try:
        settings = Settings.from_context(app.node.get_all_context())
    except SettingsRefused as refused:
        sys.exit(str(refused))
    LockstepStack(app, settings.stack_name, settings=settings, description="Parameter-server experiments")
    return app


if __name__ == "__main__":
    application().synth()
