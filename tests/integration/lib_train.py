"""What the tests of `pseg train` share: the command, its log, and files of tensors. BIN_DIR and SOURCE_DIR
are the program's first two arguments, the part to run its third."""
import json
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile

BIN, SOURCE = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
MODEL = SOURCE / "deploy/models/scenes"
TINY = ["--image-size", "112", "--dim", "32", "--heads", "2", "--depth", "1", "--mlp-dim", "64", "--upsample", "16,8"]


def command(out, *more, data="scenes:8,fixed", val="scenes:0"):
    return [str(BIN / "pseg-train"), "--data", data, "--val", val, "--vision", str(MODEL / "vision"),
            "--text", str(MODEL / "text"), "--out", str(out), *TINY, *more]


def run(args, **kw):
    return subprocess.run(args, capture_output=True, text=True, timeout=1200, **kw)


def good(args):
    r = run(args)
    assert r.returncode == 0, (args, r.returncode, r.stderr[-2000:])
    return r.stdout


def refused(args, status, *texts):
    r = run(args)
    assert r.returncode == status, (args, r.returncode, r.stderr[-2000:])
    line = [x for x in r.stderr.splitlines() if x.startswith("error:")]
    assert len(line) == 1, r.stderr
    for text in texts:
        assert text in line[0], (text, line[0])


def log(out):
    with open(out / "log.jsonl") as f:
        return [json.loads(x) for x in f]


def figures(lines):
    """What must be the same, whenever a run was interrupted."""
    timed = ("seconds", "images_per_s")
    return [{k: v for k, v in x.items() if k not in timed} for x in lines]


def tensors(path):
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    head = json.loads(data[8:8 + n])
    meta = head.pop("__metadata__")
    return meta, {k: data[8 + n + v["data_offsets"][0]:8 + n + v["data_offsets"][1]] for k, v in head.items()}


def log_lines(out):
    try:
        return (out / "log.jsonl").read_bytes().splitlines()
    except FileNotFoundError:
        return []


def floats(path):
    """Tensors of a file as lists of numbers, with their shapes."""
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    out = {}
    for k, v in json.loads(data[8:8 + n]).items():
        if k != "__metadata__":
            b = data[8 + n + v["data_offsets"][0]:8 + n + v["data_offsets"][1]]
            code = {"F32": "f", "F16": "e"}[v["dtype"]]
            out[k] = v["shape"], struct.unpack(f"<{len(b) // struct.calcsize(code)}{code}", b), v["dtype"]
    return out


def table(folder, *names):
    """A table of phrases in place of a text encoder."""
    folder.mkdir()
    (folder / "names.json").write_text(json.dumps(names))
    n = len(names)
    head = json.dumps({"embeddings": {"dtype": "F32", "shape": [n, 8], "data_offsets": [0, 32 * n]}}).encode()
    (folder / "embeddings.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + struct.pack(f"<{8 * n}f", *range(8 * n)))
    return str(folder)


def main(parts):
    tmp = pathlib.Path(tempfile.mkdtemp(prefix="pseg-train-"))
    try:
        return parts[sys.argv[3]](tmp) or 0
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
