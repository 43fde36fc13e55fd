"""Of what Step Functions tells of a failed execution, what a reader wants."""

import pytest

from lambdas.causes import readable


@pytest.mark.parametrize(
    ("cause", "told"),
    [
        ("study refused: 1 problem", "study refused: 1 problem"),
        ('{"errorMessage": "1 of 2 failed", "errorType": "StudyFailed", "stackTrace": []}', "1 of 2 failed"),
        ('{"Containers": []}', '{"Containers": []}'),
        ("7", "7"),
        ("", ""),
    ],
)
def test_of_a_functions_error_the_message_is_told(cause: str, told: str) -> None:
    assert readable(cause) == told
