"""The messages of etcd's v3 gRPC API that we use, made from the table below.

They live in a descriptor pool of their own: generated modules of other etcd libraries register
the same files in the default pool, and would clash with ours in the user's process. Enums are
int32 and unions plain fields here, which is the same on the wire.
Field numbers: etcd `api/etcdserverpb/rpc.proto` and `api/mvccpb/kv.proto`.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE: Final = "accel_dask.store.etcd"

_TABLE: Final = """
ResponseHeader: uint64 cluster_id=1, uint64 member_id=2, int64 revision=3, uint64 raft_term=4
KeyValue: bytes key=1, int64 create_revision=2, int64 mod_revision=3, int64 version=4,
    bytes value=5, int64 lease=6
Event: int32 type=1, KeyValue kv=2

RangeRequest: bytes key=1, bytes range_end=2, int64 limit=3, int64 revision=4,
    bool serializable=7, bool keys_only=8, bool count_only=9
RangeResponse: ResponseHeader header=1, KeyValue* kvs=2, bool more=3, int64 count=4
PutRequest: bytes key=1, bytes value=2, int64 lease=3
PutResponse: ResponseHeader header=1
DeleteRangeRequest: bytes key=1, bytes range_end=2
DeleteRangeResponse: ResponseHeader header=1, int64 deleted=2
RequestOp: RangeRequest request_range=1, PutRequest request_put=2,
    DeleteRangeRequest request_delete_range=3
ResponseOp: RangeResponse response_range=1, PutResponse response_put=2,
    DeleteRangeResponse response_delete_range=3
Compare: int32 result=1, int32 target=2, bytes key=3, int64 create_revision=5,
    int64 mod_revision=6, bytes range_end=64
TxnRequest: Compare* compare=1, RequestOp* success=2, RequestOp* failure=3
TxnResponse: ResponseHeader header=1, bool succeeded=2, ResponseOp* responses=3
CompactionRequest: int64 revision=1, bool physical=2
CompactionResponse: ResponseHeader header=1

WatchCreateRequest: bytes key=1, bytes range_end=2, int64 start_revision=3, bool fragment=8
WatchProgressRequest:
WatchRequest: WatchCreateRequest create_request=1, WatchProgressRequest progress_request=3
WatchResponse: ResponseHeader header=1, int64 watch_id=2, bool created=3, bool canceled=4,
    int64 compact_revision=5, string cancel_reason=6, bool fragment=7, Event* events=11

LeaseGrantRequest: int64 TTL=1, int64 ID=2
LeaseGrantResponse: ResponseHeader header=1, int64 ID=2, int64 TTL=3, string error=4
LeaseRevokeRequest: int64 ID=1
LeaseRevokeResponse: ResponseHeader header=1
LeaseKeepAliveRequest: int64 ID=1
LeaseKeepAliveResponse: ResponseHeader header=1, int64 ID=2, int64 TTL=3

AuthenticateRequest: string name=1, string password=2
AuthenticateResponse: ResponseHeader header=1, string token=2

StatusRequest:
StatusResponse: ResponseHeader header=1, string version=2, int64 dbSize=3, uint64 leader=4,
    uint64 raftIndex=5, uint64 raftTerm=6, string* errors=8
"""

_SCALARS: Final = {
    name: getattr(descriptor_pb2.FieldDescriptorProto, f"TYPE_{name.upper()}")
    for name in ("bool", "bytes", "int32", "int64", "string", "uint64")
}


def _describe(table: str) -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="accel_dask/store/etcd.proto", package=_PACKAGE, syntax="proto3"
    )
    for line in table.replace("\n    ", " ").splitlines():
        if line:
            name, _, fields = line.partition(":")
            message = file.message_type.add(name=name)
            for field in filter(None, map(str.strip, fields.split(","))):
                _add_field(message, field)
    return file


def _add_field(message: Any, text: str) -> None:
    type_name, _, rest = text.partition(" ")
    name, _, number = rest.partition("=")
    kind = descriptor_pb2.FieldDescriptorProto
    field = message.field.add(name=name, number=int(number), label=kind.LABEL_OPTIONAL)
    if type_name.endswith("*"):
        type_name, field.label = type_name[:-1], kind.LABEL_REPEATED
    if type_name in _SCALARS:
        field.type = _SCALARS[type_name]
    else:
        field.type = kind.TYPE_MESSAGE
        field.type_name = f".{_PACKAGE}.{type_name}"


_POOL: Final = descriptor_pool.DescriptorPool()
_POOL.Add(_describe(_TABLE))


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


ResponseHeader: Final = _message("ResponseHeader")
KeyValue: Final = _message("KeyValue")
Event: Final = _message("Event")
RangeRequest: Final = _message("RangeRequest")
RangeResponse: Final = _message("RangeResponse")
PutRequest: Final = _message("PutRequest")
DeleteRangeRequest: Final = _message("DeleteRangeRequest")
RequestOp: Final = _message("RequestOp")
Compare: Final = _message("Compare")
TxnRequest: Final = _message("TxnRequest")
TxnResponse: Final = _message("TxnResponse")
CompactionRequest: Final = _message("CompactionRequest")
CompactionResponse: Final = _message("CompactionResponse")
WatchCreateRequest: Final = _message("WatchCreateRequest")
WatchProgressRequest: Final = _message("WatchProgressRequest")
WatchRequest: Final = _message("WatchRequest")
WatchResponse: Final = _message("WatchResponse")
LeaseGrantRequest: Final = _message("LeaseGrantRequest")
LeaseGrantResponse: Final = _message("LeaseGrantResponse")
LeaseRevokeRequest: Final = _message("LeaseRevokeRequest")
LeaseRevokeResponse: Final = _message("LeaseRevokeResponse")
LeaseKeepAliveRequest: Final = _message("LeaseKeepAliveRequest")
LeaseKeepAliveResponse: Final = _message("LeaseKeepAliveResponse")
AuthenticateRequest: Final = _message("AuthenticateRequest")
AuthenticateResponse: Final = _message("AuthenticateResponse")
StatusRequest: Final = _message("StatusRequest")
StatusResponse: Final = _message("StatusResponse")

PUT: Final = 0
DELETE: Final = 1
"""Values of `Event.type`."""

EQUAL: Final = 0
LESS: Final = 2
"""Values of `Compare.result`."""

CREATE: Final = 1
MOD: Final = 2
"""Values of `Compare.target`."""
