from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Sender(_message.Message):
    __slots__ = ("study", "experiment", "rank")
    STUDY_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    study: str
    experiment: str
    rank: int
    def __init__(self, study: _Optional[str] = ..., experiment: _Optional[str] = ..., rank: _Optional[int] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("sender", "parameters", "steps")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    sender: Sender
    parameters: int
    steps: int
    def __init__(self, sender: _Optional[_Union[Sender, _Mapping]] = ..., parameters: _Optional[int] = ..., steps: _Optional[int] = ...) -> None: ...

class JoinReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WithdrawRequest(_message.Message):
    __slots__ = ("sender", "reason")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    sender: Sender
    reason: str
    def __init__(self, sender: _Optional[_Union[Sender, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class WithdrawReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AttendRequest(_message.Message):
    __slots__ = ("sender",)
    SENDER_FIELD_NUMBER: _ClassVar[int]
    sender: Sender
    def __init__(self, sender: _Optional[_Union[Sender, _Mapping]] = ...) -> None: ...

class Notice(_message.Message):
    __slots__ = ("started", "heartbeat", "ended", "superseded")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    SUPERSEDED_FIELD_NUMBER: _ClassVar[int]
    started: Started
    heartbeat: Heartbeat
    ended: Ended
    superseded: Superseded
    def __init__(self, started: _Optional[_Union[Started, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., ended: _Optional[_Union[Ended, _Mapping]] = ..., superseded: _Optional[_Union[Superseded, _Mapping]] = ...) -> None: ...

class Started(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Superseded(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...

class Ended(_message.Message):
    __slots__ = ("reason", "lost_peer")
    REASON_FIELD_NUMBER: _ClassVar[int]
    LOST_PEER_FIELD_NUMBER: _ClassVar[int]
    reason: str
    lost_peer: str
    def __init__(self, reason: _Optional[str] = ..., lost_peer: _Optional[str] = ...) -> None: ...

class PullRequest(_message.Message):
    __slots__ = ("sender",)
    SENDER_FIELD_NUMBER: _ClassVar[int]
    sender: Sender
    def __init__(self, sender: _Optional[_Union[Sender, _Mapping]] = ...) -> None: ...

class Header(_message.Message):
    __slots__ = ("sender", "step", "version", "dtype", "length", "waited_seconds", "dropped")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    WAITED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    sender: Sender
    step: int
    version: int
    dtype: str
    length: int
    waited_seconds: float
    dropped: bool
    def __init__(self, sender: _Optional[_Union[Sender, _Mapping]] = ..., step: _Optional[int] = ..., version: _Optional[int] = ..., dtype: _Optional[str] = ..., length: _Optional[int] = ..., waited_seconds: _Optional[float] = ..., dropped: _Optional[bool] = ...) -> None: ...

class Gradient(_message.Message):
    __slots__ = ("header", "data")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    header: Header
    data: bytes
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Parameters(_message.Message):
    __slots__ = ("header", "data")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    header: Header
    data: bytes
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("header", "data")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    header: Header
    data: bytes
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class FinishRequest(_message.Message):
    __slots__ = ("sender", "tested_version")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    TESTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    sender: Sender
    tested_version: int
    def __init__(self, sender: _Optional[_Union[Sender, _Mapping]] = ..., tested_version: _Optional[int] = ...) -> None: ...

class FinishReply(_message.Message):
    __slots__ = ("version", "test_final")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TEST_FINAL_FIELD_NUMBER: _ClassVar[int]
    version: int
    test_final: bool
    def __init__(self, version: _Optional[int] = ..., test_final: _Optional[bool] = ...) -> None: ...
