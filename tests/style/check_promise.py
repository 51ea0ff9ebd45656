#!/usr/bin/env python3
"""The API promises what proto/promised.txt says: every line of it must still be true of proto/.

    python3 check_promise.py PROMISED DESCRIPTORS           check (the test `promise`)
    python3 check_promise.py PROMISED DESCRIPTORS --write   at a release: promise what is there now, too

A line is a fact that generated code or the wire depends on, so one that is gone is a break: these are the FILE
rules of `buf breaking`. What is new breaks nothing. Each way to break a contract is tried here first, on copies,
so that a check that finds nothing has looked. Exit status 77: the Python package protobuf is missing."""
import pathlib
import sys

try:
    from google.protobuf import descriptor_pb2
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)

PROMISED_FILES = ("pseg/v1/pseg.proto", "pseg/v1/batch.proto", "pseg/v1/admin.proto",
                  "inference/open_inference.proto", "keda/externalscaler.proto")
FIELD = descriptor_pb2.FieldDescriptorProto


def of_field(scope, f, oneofs):
    kind = f.type_name or FIELD.Type.Name(f.type)[5:].lower()
    label = FIELD.Label.Name(f.label)[6:].lower()
    oneof = f" oneof {oneofs[f.oneof_index]}" if f.HasField("oneof_index") else ""
    packed = " packed" if f.options.packed else ""
    return f"field {scope}.{f.name} = {f.number} {label} {kind} json {f.json_name}{oneof}{packed}"


def of_enum(file, scope, e):
    name = f"{scope}.{e.name}"
    yield f"enum {name} in {file}"
    yield from (f"value {name}.{v.name} = {v.number}" for v in e.value)
    yield from (f"reserved {name} {r.start} to {r.end}" for r in e.reserved_range)
    yield from (f"reserved {name} {n}" for n in e.reserved_name)


def of_message(file, scope, m):
    name = f"{scope}.{m.name}"
    yield f"message {name} in {file}{' map' if m.options.map_entry else ''}"
    yield from (of_field(name, f, [o.name for o in m.oneof_decl]) for f in m.field)
    yield from (f"reserved {name} {r.start} to {r.end - 1}" for r in m.reserved_range)
    yield from (f"reserved {name} {n}" for n in m.reserved_name)
    for nested in m.nested_type:
        yield from of_message(file, name, nested)
    for nested in m.enum_type:
        yield from of_enum(file, name, nested)


def of_file(f):
    yield f"file {f.name} package {f.package} syntax {f.syntax}"
    yield from (f"option {f.name} {o.name} = {value}" for o, value in f.options.ListFields())
    for m in f.message_type:
        yield from of_message(f.name, f.package, m)
    for e in f.enum_type:
        yield from of_enum(f.name, f.package, e)
    for s in f.service:
        yield f"service {f.package}.{s.name} in {f.name}"
        for m in s.method:
            streams = [" stream" if is_stream else "" for is_stream in (m.client_streaming, m.server_streaming)]
            yield f"rpc {f.package}.{s.name}/{m.name}{streams[0]} {m.input_type} returns{streams[1]} {m.output_type}"


def facts(files):
    return [line for f in files if f.name in PROMISED_FILES for line in of_file(f)]


def broken(promised, files):
    now = set(facts(files))
    return [line for line in promised if line not in now]


def breaks():
    """Ways to break a contract: (what, f(file of pseg.v1))."""
    def spec(f):
        return next(m for m in f.message_type if m.name == "JobSpec")

    def field(f, name="model"):
        return next(x for x in spec(f).field if x.name == name)

    def drop(of, name):
        del of[next(i for i, x in enumerate(of) if x.name == name)]
    yield "a field is gone", lambda f: drop(spec(f).field, "model")
    yield "a field has another name", lambda f: setattr(field(f), "name", "model_name")
    yield "a field has another number", lambda f: setattr(field(f), "number", 99)
    yield "a field has another type", lambda f: setattr(field(f), "type", FIELD.TYPE_BYTES)
    yield "a field is repeated", lambda f: setattr(field(f), "label", FIELD.LABEL_REPEATED)
    yield "a field has another name in JSON", lambda f: setattr(field(f), "json_name", "m")
    yield "a field leaves its oneof", lambda f: field(f, "content").ClearField("oneof_index")
    yield "a field is of another message", lambda f: setattr(field(f, "prompts"), "type_name", ".pseg.v1.Job")
    yield "a message is gone", lambda f: drop(f.message_type, "StageTime")
    yield "a message has another name", lambda f: setattr(spec(f), "name", "Spec")
    yield "an enum is gone", lambda f: drop(f.enum_type, "State")
    yield "a value is gone", lambda f: drop(f.enum_type[0].value, f.enum_type[0].value[-1].name)
    yield "a value has another number", lambda f: setattr(f.enum_type[0].value[-1], "number", 77)
    yield "a method is gone", lambda f: drop(f.service[0].method, "GetJob")
    yield "a method takes another message", lambda f: setattr(f.service[0].method[0], "input_type", ".pseg.v1.Job")
    yield "a method streams", lambda f: setattr(f.service[0].method[0], "server_streaming", True)
    yield "a service has another name", lambda f: setattr(f.service[0], "name", "Segmentation")
    yield "the package is another", lambda f: setattr(f, "package", "pseg.v2")
    yield "generated Go lies elsewhere", lambda f: setattr(f.options, "go_package", "elsewhere")
    yield "the file has another name", lambda f: setattr(f, "name", "pseg/v1/api.proto")


def look_at_itself(files):
    """Every break must be found, and what only adds must not."""
    promised = facts(files)
    faults = []
    for what, change in (*breaks(), (None, lambda f: f.message_type[0].field.add(name="new", number=500, type=9, label=1))):
        copies = [descriptor_pb2.FileDescriptorProto.FromString(f.SerializeToString()) for f in files]
        change(next(c for c in copies if c.name == "pseg/v1/pseg.proto"))
        if bool(broken(promised, copies)) != (what is not None):
            faults.append(f"the check itself is broken: {what or 'a new field counts as a break'}")
    return faults


def main():
    promised_file, descriptors = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    files = descriptor_pb2.FileDescriptorSet.FromString(descriptors.read_bytes()).file
    if "--write" in sys.argv[3:]:
        promised_file.write_text("".join(line + "\n" for line in facts(files)))
    promised = promised_file.read_text().splitlines()
    faults = look_at_itself(files) + [f"no longer true: {line}" for line in broken(promised, files)]
    if len(promised) < 100:
        faults.append(f"{promised_file}: {len(promised)} lines are too few to be the whole promise")
    print("\n".join(faults + [f"{len(promised)} facts are promised, {len(facts(files))} are true, {len(faults)} faults"]))
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
