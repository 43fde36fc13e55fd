from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FrameKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FRAME_UNSPECIFIED: _ClassVar[FrameKind]
    HELLO: _ClassVar[FrameKind]
    WELCOME: _ClassVar[FrameKind]
    REFUSED: _ClassVar[FrameKind]
    PULL: _ClassVar[FrameKind]
    PUSH: _ClassVar[FrameKind]
    BLOCK: _ClassVar[FrameKind]
    ANSWER: _ClassVar[FrameKind]
FRAME_UNSPECIFIED: FrameKind
HELLO: FrameKind
WELCOME: FrameKind
REFUSED: FrameKind
PULL: FrameKind
PUSH: FrameKind
BLOCK: FrameKind
ANSWER: FrameKind

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
    __slots__ = ("sender",)
    SENDER_FIELD_NUMBER: _ClassVar[int]
    sender: Sender
    def __init__(self, sender: _Optional[_Union[Sender, _Mapping]] = ...) -> None: ...

class JoinReply(_message.Message):
    __slots__ = ("data_port",)
    DATA_PORT_FIELD_NUMBER: _ClassVar[int]
    data_port: int
    def __init__(self, data_port: _Optional[int] = ...) -> None: ...

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
    __slots__ = ("next_step",)
    NEXT_STEP_FIELD_NUMBER: _ClassVar[int]
    next_step: int
    def __init__(self, next_step: _Optional[int] = ...) -> None: ...

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

class ReadyRequest(_message.Message):
    __slots__ = ("sender", "parameters", "steps", "next_step")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    NEXT_STEP_FIELD_NUMBER: _ClassVar[int]
    sender: Sender
    parameters: int
    steps: int
    next_step: int
    def __init__(self, sender: _Optional[_Union[Sender, _Mapping]] = ..., parameters: _Optional[int] = ..., steps: _Optional[int] = ..., next_step: _Optional[int] = ...) -> None: ...

class ReadyReply(_message.Message):
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

class Hello(_message.Message):
    __slots__ = ("sender", "token", "attempt", "down", "shared_memory")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    DOWN_FIELD_NUMBER: _ClassVar[int]
    SHARED_MEMORY_FIELD_NUMBER: _ClassVar[int]
    sender: Sender
    token: str
    attempt: int
    down: bool
    shared_memory: SharedMemory
    def __init__(self, sender: _Optional[_Union[Sender, _Mapping]] = ..., token: _Optional[str] = ..., attempt: _Optional[int] = ..., down: _Optional[bool] = ..., shared_memory: _Optional[_Union[SharedMemory, _Mapping]] = ...) -> None: ...

class SharedMemory(_message.Message):
    __slots__ = ("process", "descriptor", "nonce")
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    process: int
    descriptor: int
    nonce: bytes
    def __init__(self, process: _Optional[int] = ..., descriptor: _Optional[int] = ..., nonce: _Optional[bytes] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("shared_memory",)
    SHARED_MEMORY_FIELD_NUMBER: _ClassVar[int]
    shared_memory: bool
    def __init__(self, shared_memory: _Optional[bool] = ...) -> None: ...

class Refused(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Push(_message.Message):
    __slots__ = ("step", "version", "compression", "length", "attempt")
    STEP_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    COMPRESSION_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    step: int
    version: int
    compression: str
    length: int
    attempt: int
    def __init__(self, step: _Optional[int] = ..., version: _Optional[int] = ..., compression: _Optional[str] = ..., length: _Optional[int] = ..., attempt: _Optional[int] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("version", "waited_seconds", "dropped")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WAITED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    version: int
    waited_seconds: float
    dropped: bool
    def __init__(self, version: _Optional[int] = ..., waited_seconds: _Optional[float] = ..., dropped: _Optional[bool] = ...) -> None: ...
