#!/usr/bin/env python3
"""A corpus in one file, an input a line in base64, so that thousands of small inputs are one file of the repository.

    corpus.py pack FOLDER... > NAME_corpus/found.base64     what a fuzzer has found, each input once, in a fixed order
    corpus.py unpack NAME_corpus FOLDER                     every input of a corpus as a file, for libFuzzer"""
import base64
import hashlib
import pathlib
import sys


def inputs(folder):
    """Bytes of every input of a folder, of files and of lines."""
    for path in sorted(pathlib.Path(folder).rglob("*")):
        if not path.is_file():
            continue
        if path.suffix == ".base64":
            for line in path.read_bytes().split():
                yield base64.b64decode(line, validate=True)
        else:
            yield path.read_bytes()


def pack(folders):
    found = {data for folder in folders for data in inputs(folder) if data}
    for data in sorted(found, key=lambda x: (len(x), x)):
        print(base64.b64encode(data).decode())


def unpack(corpus, folder):
    out = pathlib.Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    for data in inputs(corpus):
        (out / hashlib.sha1(data).hexdigest()).write_bytes(data)


def main():
    match sys.argv[1:]:
        case ["pack", *folders] if folders:
            pack(folders)
        case ["unpack", corpus, folder]:
            unpack(corpus, folder)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
