"""The messages and methods of pseg.v1, made from descriptors.binpb. Nothing here is generated code, so
any release of protobuf's runtime serves."""
from __future__ import annotations

import pathlib
from typing import Any, Dict, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICES = ("pseg.v1.SegmentationService", "pseg.v1.BatchService")


class Method(NamedTuple):
    path: str
    streams_requests: bool
    streams_replies: bool
    request: Any
    reply: Any


# A pool of its own: another package may have loaded a google.rpc of its own.
_pool = descriptor_pool.DescriptorPool()


def message(name: str) -> Any:
    """The class of a message, by its full name."""
    d = _pool.FindMessageTypeByName(name)
    if hasattr(message_factory, "GetMessageClass"):
        return message_factory.GetMessageClass(d)
    factory: Any = message_factory.MessageFactory(_pool)  # protobuf before 4.22
    return factory.GetPrototype(d)


def _load() -> Dict[str, Method]:
    data = (pathlib.Path(__file__).parent / "descriptors.binpb").read_bytes()
    methods = {}
    for file in descriptor_pb2.FileDescriptorSet.FromString(data).file:
        _pool.Add(file)
    for service in SERVICES:  # no two of them have a method of one name
        for m in _pool.FindServiceByName(service).methods:
            proto = descriptor_pb2.MethodDescriptorProto()
            m.CopyToProto(proto)
            methods[m.name] = Method(f"/{service}/{m.name}", proto.client_streaming, proto.server_streaming,
                                     message(m.input_type.full_name), message(m.output_type.full_name))
    return methods


METHODS = _load()


def channel_call(channel: Any, name: str) -> Any:
    """The callable of a method on a grpc or grpc.aio channel."""
    m = METHODS[name]
    kind = ("stream" if m.streams_requests else "unary") + "_" + ("stream" if m.streams_replies else "unary")
    return getattr(channel, kind)(m.path, m.request.SerializeToString, m.reply.FromString)
