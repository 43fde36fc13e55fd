"""The app with cdk-nag looking at it: synthesizes, and fails where it finds what is not answered."""

import aws_cdk as cdk
from cdk_nag import AwsSolutionsChecks

from app import application

app = application()
cdk.Validations.of(app).add_plugins(AwsSolutionsChecks(app))
app.synth()
