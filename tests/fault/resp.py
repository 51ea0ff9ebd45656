"""The little of Redis' protocol that the harness needs: so that what watches the queue shares no code with it."""
import socket


class Refused(Exception):
    """Redis answered with an error."""


class Redis:
    """One connection. Every failure of it is an OSError; dial again."""

    def __init__(self, path, timeout_s=5):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(timeout_s)
        self.socket.connect(str(path))
        self.file = self.socket.makefile("rb")

    def __call__(self, *words):
        parts = [str(w).encode() if not isinstance(w, bytes) else w for w in words]
        self.socket.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts))
        return self.answer()

    def answer(self):
        line = self.file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("redis closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest.decode()
        if kind == b"-":
            raise Refused(rest.decode(errors="replace"))
        if kind == b":":
            return int(rest)
        if kind == b"$":
            if int(rest) < 0:
                return None
            data = self.file.read(int(rest) + 2)
            if len(data) != int(rest) + 2:
                raise ConnectionError("redis closed the connection")
            try:
                return data[:-2].decode()
            except UnicodeDecodeError:
                return data[:-2]
        if kind == b"*":
            if int(rest) < 0:
                return None
            found = []
            for _ in range(int(rest)):
                try:
                    found.append(self.answer())
                except Refused as e:  # an error within a list
                    found.append(e)
            return found
        raise ConnectionError(f"not redis: {line!r}")

    def close(self):
        self.file.close()
        self.socket.close()
