"""A reader of TensorBoard's event files that shares nothing with their writer: records with their
checksums, Events by protobuf's wire format, and which of them count where a run was restarted."""
import struct


def crc32c(data):
    """Bit by bit, from the polynomial."""
    c = 0xffffffff
    for byte in data:
        c ^= byte
        for _ in range(8):
            c = c >> 1 ^ (0x82f63b78 if c & 1 else 0)
    return c ^ 0xffffffff


assert crc32c(b"123456789") == 0xe3069283  # the check value of the CRC catalogues


def masked(data):
    c = crc32c(data)
    return ((c >> 15 | c << 17) + 0xa282ead8) & 0xffffffff


def records(data):
    """Those that are whole; what a killed process left of its last one is not."""
    at = 0
    while at + 12 <= len(data):
        n, check = struct.unpack_from("<QI", data, at)
        assert check == masked(data[at:at + 8]), f"length at byte {at}"
        if at + 16 + n > len(data):
            break
        body = data[at + 12:at + 12 + n]
        assert struct.unpack_from("<I", data, at + 12 + n)[0] == masked(body), f"data at byte {at}"
        yield body
        at += 16 + n


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def fields(data):
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = varint(data, at)
        elif kind == 2:
            n, at = varint(data, at)
            value, at = data[at:at + n], at + n
        else:
            size, code = {1: (8, "<d"), 5: (4, "<f")}[kind]
            value, at = struct.unpack_from(code, data, at)[0], at + size
        yield key >> 3, value


def scalars(folder):
    """{(tag, step): value} of all event files of a folder, in the order of their names."""
    found, last = {}, 0
    files = sorted(folder.glob("events.out.tfevents.*"))
    assert files, list(folder.iterdir())
    for path in files:
        for number, record in enumerate(records(path.read_bytes())):
            event = dict(fields(record))
            assert 1.5e9 < event[1] and event[1] >= last - 1, (event, last)
            last, step = event[1], event.get(2, 0)
            if number == 0:
                assert event[3] == b"brain.Event:2", event
            elif number == 1:
                assert dict(fields(event[7])) == {1: 1}, event  # START: what came after this step is void
                found = {k: v for k, v in found.items() if k[1] < step}
            else:
                for field, value in fields(event[5]):
                    value = dict(fields(value))
                    assert field == 1 and set(value) == {1, 2}, value
                    found[value[1].decode(), step] = value[2]
    return found


def of_log(lines):
    """What a run's log says, in the same form."""
    as_float = lambda x: struct.unpack("<f", struct.pack("<f", x))[0]
    names = {"step": {"loss": "train/loss", "bce": "train/bce", "dice": "train/dice", "iou_loss": "train/iou_loss",
                      "iou": "train/iou", "norm": "step/norm", "lr": "step/lr"},
             "epoch": {"loss": "epoch/loss", "iou": "epoch/iou", "val_loss": "validation/loss", "val_iou": "validation/iou",
                       "val_iou_50": "validation/iou_50", "val_pred_off": "validation/pred_off"}}
    found = {}
    for line in lines:
        step = line["step"] - (line["type"] == "epoch")
        for key, tag in names.get(line["type"], {}).items():
            if line[key] is not None:
                found[tag, step] = as_float(line[key])
    return found


def check(folder, lines):
    """An event file and a log tell the same, but for the speed, which the log rounds."""
    found = {k: v for k, v in scalars(folder).items() if k[0] != "step/images_per_s"}
    want = of_log(lines)
    assert found == want, [(k, found.get(k), want.get(k)) for k in sorted({*found, *want}) if found.get(k) != want.get(k)][:5]
