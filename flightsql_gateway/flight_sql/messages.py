"""The Flight SQL messages, as protobuf classes of this module's own.

Built from the tables below into a private descriptor pool: generated modules would register the
same names in the process-wide pool and collide with every other Flight SQL package. Field numbers
are the protocol's (Apache Arrow, format/FlightSql.proto and Flight.proto).
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from accel_dask.errors import InvalidQuery

TYPE_PREFIX: Final = "type.googleapis.com/arrow.flight.protocol.sql."

# message: field type number, ...; a trailing * means repeated.
_SQL: Final = {
    "CommandStatementQuery": "query string 1, transaction_id bytes 2",
    "CommandStatementUpdate": "query string 1, transaction_id bytes 2",
    "CommandStatementSubstraitPlan": "transaction_id bytes 2",
    "CommandStatementIngest": "table string 2",
    "CommandPreparedStatementQuery": "prepared_statement_handle bytes 1",
    "CommandPreparedStatementUpdate": "prepared_statement_handle bytes 1",
    "TicketStatementQuery": "statement_handle bytes 1",
    "ActionCreatePreparedStatementRequest": "query string 1, transaction_id bytes 2",
    "ActionCreatePreparedStatementResult": (
        "prepared_statement_handle bytes 1, dataset_schema bytes 2, parameter_schema bytes 3,"
        " is_update bool 4"
    ),
    "ActionClosePreparedStatementRequest": "prepared_statement_handle bytes 1",
    "DoPutPreparedStatementResult": "prepared_statement_handle bytes 1",
    "DoPutUpdateResult": "record_count int64 1",
    "CommandGetSqlInfo": "info uint32* 1",
    "CommandGetCatalogs": "",
    "CommandGetDbSchemas": "catalog string 1, db_schema_filter_pattern string 2",
    "CommandGetTables": (
        "catalog string 1, db_schema_filter_pattern string 2, table_name_filter_pattern string 3,"
        " table_types string* 4, include_schema bool 5"
    ),
    "CommandGetTableTypes": "",
    "CommandGetXdbcTypeInfo": "data_type int32 1",
    "CommandGetPrimaryKeys": "catalog string 1, db_schema string 2, table string 3",
    "CommandGetExportedKeys": "catalog string 1, db_schema string 2, table string 3",
    "CommandGetImportedKeys": "catalog string 1, db_schema string 2, table string 3",
    "CommandGetCrossReference": "pk_table string 3, fk_table string 6",
}
_FLIGHT: Final = {
    "Any": "type_url string 1, value bytes 2",
    "StringList": "values string* 1",
    "SessionOptionValue": (
        "string_value string 1, bool_value bool 2, int64_value sfixed64 3, double_value double 4,"
        " string_list_value StringList 5"
    ),
    "SessionOption": "key string 1, value SessionOptionValue 2",
    "SetSessionOptionsRequest": "session_options SessionOption* 1",
    "SessionError": "value int32 1",
    "SessionErrorEntry": "key string 1, value SessionError 2",
    "SetSessionOptionsResult": "errors SessionErrorEntry* 1",
    "GetSessionOptionsRequest": "",
    "GetSessionOptionsResult": "session_options SessionOption* 1",
    "CloseSessionRequest": "",
    "CloseSessionResult": "status int32 1",
    "CancelFlightInfoResult": "status int32 1",
}

_PACKAGES: Final = {"accel.flight": _FLIGHT, "arrow.flight.protocol.sql": _SQL}


def _build() -> dict[str, type[Any]]:
    pool = descriptor_pool.DescriptorPool()
    names = []
    for package, messages in _PACKAGES.items():
        file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package)
        for name, fields in messages.items():
            message = file.message_type.add(name=name)
            for field in filter(None, fields.split(",")):
                _add_field(message, package, *field.split())
            names.append((name, f"{package}.{name}"))
        pool.Add(file) if hasattr(pool, "Add") else pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(full))
        for name, full in names
    }


def _add_field(
    message: descriptor_pb2.DescriptorProto, package: str, name: str, kind: str, number: str
) -> None:
    kinds = descriptor_pb2.FieldDescriptorProto
    label = kinds.LABEL_REPEATED if kind.endswith("*") else kinds.LABEL_OPTIONAL
    kind = kind.rstrip("*")
    if kind[0].isupper():
        message.field.add(
            name=name,
            number=int(number),
            label=label,
            type=kinds.TYPE_MESSAGE,
            type_name=f".{package}.{kind}",
        )
    else:
        value = getattr(kinds, f"TYPE_{kind.upper()}")
        message.field.add(name=name, number=int(number), label=label, type=value)


_CLASSES: Final = _build()


def new(name: str, **fields: Any) -> Any:
    """A new message of type `name`."""
    return _CLASSES[name](**fields)


def decode(name: str, data: bytes) -> Any:
    """The message of type `name` in `data`, which is not wrapped.

    Raises:
        InvalidQuery: it is not one.
    """
    try:
        return _CLASSES[name].FromString(data)
    except (DecodeError, UnicodeDecodeError) as error:
        raise InvalidQuery(f"the request is not a {name} message") from error


def wrap(message: Any) -> bytes:
    """`message` as a `google.protobuf.Any`, serialized."""
    name = type(message).DESCRIPTOR.name
    wrapped = new("Any", type_url=TYPE_PREFIX + name, value=message.SerializeToString())
    data: bytes = wrapped.SerializeToString()
    return data


def unwrap(data: bytes) -> tuple[str, Any]:
    """Type name and message in a serialized `google.protobuf.Any`.

    Raises:
        InvalidQuery: no Flight SQL message known here.
    """
    wrapped = decode("Any", data)
    name = wrapped.type_url.rpartition(".")[2]
    if not wrapped.type_url.startswith(TYPE_PREFIX) or name not in _SQL:
        raise InvalidQuery(f"the request is no Flight SQL command known here ({name[:60]!r})")
    return name, decode(name, wrapped.value)
