#!/usr/bin/env python3
"""Checks the rules of the source tree that a compiler does not: where each third-party header may
be included, which folder may include which, functions to keep out, and that every header compiles
alone. Usage: check_source.py ROOT BUILD [CC]. Exit 1 with one line per fault."""
import pathlib
import re
import subprocess
import sys

ROOT, BUILD = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
CC = sys.argv[3] if len(sys.argv) > 3 else "cc"

# Third-party header prefix -> where it may be included (path prefixes).
THIRD_PARTY = {
    "grpc/": ["common/rpc/"],
    "hiredis/": ["common/queue/queue_redis"],
    "CL/": ["worker/cl/", "worker/ops/", "tests/fault/broken_cl.c"],
    "vips/": ["common/image/"],
    "seccomp.h": ["worker/decode/"],
    "png.h": ["common/mask/"],
    "openssl/": ["common/base/hash.c"],
    "utf8proc.h": ["common/base/utf8.c"],
    "microhttpd.h": ["common/metrics/"],
    "cmocka.h": ["tests/"],
    "jansson.h": ["worker/model/", "worker/text/", "worker/apps/", "worker/scenes/", "worker/data/", "worker/eval/", "client/", "tests/"],
    "zlib.h": ["worker/text/", "common/mask/", "worker/data/parquet_encoding.c"],
    "snappy": ["worker/data/parquet_encoding.c"],
    "zstd.h": ["worker/data/parquet_encoding.c"],
}
# Our folder -> folders it may include besides itself. Data flows one way.
BASE = ["common/base"]
COMMON = BASE + ["common/job", "common/queue", "common/rpc", "common/metrics", "common/trace", "common/image", "common/mask", "common/show", "pseg", "google", "grpc"]
ALLOWED = {
    "common/base": [],
    "common/job": BASE + ["pseg"],
    "common/queue": BASE + ["common/job", "pseg"],
    "common/rpc": BASE + ["google", "grpc", "pseg"],
    "common/metrics": BASE,
    "common/image": BASE,
    "common/mask": BASE,
    "common/trace": BASE + ["common/rpc", "common/metrics", "opentelemetry"],
    "common/show": BASE + ["common/image", "common/mask"],
    "scheduler": COMMON + ["scheduler", "keda", "inference"],
    "client": COMMON,
    "worker/cl": BASE + ["kernels"],
    "worker/ops": BASE + ["worker/cl", "kernels"],
    "worker/text": BASE,
    "worker/model": BASE + ["worker/cl", "worker/ops", "worker/text"],
    "worker/scenes": BASE + ["common/image", "common/mask"],
    "worker/data": BASE + ["common/image", "common/mask", "worker/cl", "worker/ops", "worker/model", "worker/text"],
    "worker/eval": BASE + ["common/image", "common/mask", "worker/cl", "worker/data", "worker/model", "worker/ops", "worker/scenes"],
    "worker/train": BASE + ["common/image", "common/mask", "worker/cl", "worker/ops", "worker/model", "worker/text",
                            "worker/scenes", "worker/data", "kernels"],
    "worker/decode": BASE + ["common/image"],
    "worker/serve": BASE + ["common/job", "common/queue", "common/image", "common/mask", "pseg",
                            "worker/cl", "worker/decode", "worker/model", "worker/text"],
    "worker/apps": COMMON + ["worker"],
}
# Kept out, and where each is allowed all the same.
BANNED = {
    r"\b(strcpy|strcat|sprintf|vsprintf|strtok|atoi|atof|gets|system|rand)\s*\(": ["tests/"],
    r"\bgetenv\s*\(": ["common/base/conf.c", "tests/"],
    r"(?<![_\w])(malloc|calloc|realloc|free)\s*\(": ["common/base/alloc.c", "common/base/utf8.c", "tests/"],
    r"\b(exit|abort)\s*\(": ["common/base/err.c", "worker/apps/", "client/", "scheduler/main.c", "tests/"],
    r"\bassert\s*\(": ["tests/"],
    r"\b(sleep|usleep)\s*\(": [],
}
faults = []


def strip(text):
    """Blanks comments and strings, keeping line numbers."""
    def blank(m):
        return re.sub(r"[^\n]", " ", m.group(0))
    return re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', blank, text, flags=re.S)


def folder_of(path):
    return max((f for f in ALLOWED if path.startswith(f + "/")), key=len, default=None)


def check_file(path):
    text = (ROOT / path).read_text()
    folder = folder_of(path)
    for number, line in enumerate(text.splitlines(), 1):
        if len(line) > 120:
            faults.append(f"{path}:{number}: line of {len(line)} characters; the limit is 120")
        m = re.match(r'\s*#\s*include\s*([<"])([^>"]+)[>"]', line)
        if not m:
            continue
        name = m.group(2)
        for prefix, places in THIRD_PARTY.items():
            if name.startswith(prefix) and m.group(1) == "<" and not any(path.startswith(p) for p in places):
                faults.append(f"{path}:{number}: <{name}> may be included only in {', '.join(places)}")
        if m.group(1) == '"' and folder and not path.startswith("tests/"):
            if "/" not in name:
                faults.append(f"{path}:{number}: include \"{name}\" by its path from the root")
            elif not any(name.startswith(f + "/") for f in ALLOWED[folder] + [folder]):
                faults.append(f"{path}:{number}: {folder} must not include \"{name}\"")
    code = strip(text)
    for pattern, places in BANNED.items():
        for m in re.finditer(pattern, code):
            if not any(path.startswith(p) for p in places):
                line = code.count("\n", 0, m.start()) + 1
                faults.append(f"{path}:{line}: {m.group(0).strip('( ')} is kept out here")


def check_header(path):
    result = subprocess.run(
        [CC, "-std=c11", "-D_GNU_SOURCE", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-x", "c",
         f"-I{ROOT}", f"-I{BUILD}/gen", str(ROOT / path)], capture_output=True, text=True)
    if result.returncode:
        faults.append(f"{path}: does not compile alone: {result.stderr.strip().splitlines()[0]}")


def check_reasons():
    """docs/api.md lists every reason of common/base/err.h with its gRPC status and no other."""
    codes = {1: "CANCELLED", 3: "INVALID_ARGUMENT", 4: "DEADLINE_EXCEEDED", 5: "NOT_FOUND", 6: "ALREADY_EXISTS",
             7: "PERMISSION_DENIED", 8: "RESOURCE_EXHAUSTED", 9: "FAILED_PRECONDITION", 10: "ABORTED",
             12: "UNIMPLEMENTED", 13: "INTERNAL", 14: "UNAVAILABLE", 15: "DATA_LOSS", 16: "UNAUTHENTICATED"}
    table = (ROOT / "common/base/err.h").read_text()
    code = {(n, codes[int(g)], r == "true") for n, g, r in
            re.findall(r"X\((\w+), PSEG_\w+, (\d+), (true|false)\)", table)}
    docs = {(n, c, later == "yes") for n, c, later in
            re.findall(r"^\| ([A-Z_]+) \| ([A-Z_]+) \| (yes|) ?\|", (ROOT / "docs/api.md").read_text(), re.M)}
    for name, status, _ in sorted(code ^ docs):
        faults.append(f"docs/api.md and common/base/err.h differ in {name} ({status})")


def main():
    files = sorted(str(p.relative_to(ROOT)) for top in ("common", "scheduler", "client", "worker", "tests")
                   for p in (ROOT / top).rglob("*.[ch]"))
    if len(files) < 10:
        faults.append(f"only {len(files)} source files found below {ROOT}: is it the project's root?")
    check_reasons()
    for path in files:
        check_file(path)
        if path.endswith(".h") and not path.startswith("tests/"):
            check_header(path)
    print("\n".join(faults) or f"{len(files)} files checked")
    return 1 if faults else 0


sys.exit(main())
