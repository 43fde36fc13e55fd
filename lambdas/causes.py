"""Causes, as Step Functions tells them. Pure; used by sweep_tasks, publish_report and the command line."""

import json


def readable(cause: str) -> str:
    """The message in an execution's cause: of a function's error that is a JSON object, with other things in it.

    Source: Step Functions Developer Guide, handling errors; Lambda Developer Guide, errors of Python functions.
    """
    try:
        document = json.loads(cause)
    except ValueError:
        return cause
    return str(document.get("errorMessage", cause)) if isinstance(document, dict) else cause
