"""HTTP/2 by hand, for what no well-behaved client sends: a frame is sent as it is written here, and what
comes back is read by one thread per connection (RFC 9113, RFC 7541; no Huffman codes, no dynamic table)."""
import socket
import ssl
import struct
import threading
import time

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def integer(n, bits, first=0):
    """RFC 7541, 5.1."""
    top = (1 << bits) - 1
    if n < top:
        return bytes([first | n])
    out, n = [first | top], n - top
    while n >= 128:
        out.append(n % 128 + 128)
        n //= 128
    return bytes([*out, n])


def literal(name, value):
    """A header that enters no table."""
    name, value = (x.encode() if isinstance(x, str) else x for x in (name, value))
    return b"\0" + integer(len(name), 7) + name + integer(len(value), 7) + value


def call_headers(path, *more, scheme="http"):
    pairs = ((":method", "POST"), (":scheme", scheme), (":path", path), (":authority", "localhost"),
             ("content-type", "application/grpc"), ("te", "trailers"), *more)
    return b"".join(literal(*p) for p in pairs)


def grpc_message(data, compressed=False, claimed=None):
    return bytes([compressed]) + struct.pack(">I", len(data) if claimed is None else claimed) + data


class Tls:
    """A socket with TLS on it that one thread reads and others write to, which ssl.SSLSocket does not bear: the
    library's object is used by one at a time, and never while the socket is waited for."""

    def __init__(self, sock, context, name):
        self.sock, self.incoming, self.outgoing = sock, ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=name)
        self.mu, self.sending = threading.Lock(), threading.Lock()
        self.settimeout, self.shutdown, self.close = sock.settimeout, sock.shutdown, sock.close
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                sock.sendall(self.outgoing.read())
                self._receive()
        sock.sendall(self.outgoing.read())

    def _receive(self):
        data = self.sock.recv(65536)
        with self.mu:
            self.incoming.write(data)
            if not data:
                self.incoming.write_eof()

    def sendall(self, data):
        with self.sending:
            with self.mu:
                self.tls.write(data)
                data = self.outgoing.read()
            self.sock.sendall(data)

    def recv(self, n):
        while True:
            with self.mu:
                try:
                    return self.tls.read(n)
                except ssl.SSLWantReadError:
                    pass
                except ssl.SSLZeroReturnError:
                    return b""
            self._receive()


class Connection:
    """target: "host:port". With ca, TLS by that authority's certificate."""

    def __init__(self, target, preface=True, ca=None, settings=b"", reads=True):
        host, port = target.rsplit(":", 1)
        self.sock = socket.create_connection((host.strip("[]"), int(port)), timeout=30)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if ca:
            context = ssl.create_default_context(cafile=str(ca))
            context.set_alpn_protocols(["h2"])
            self.sock = Tls(self.sock, context, "localhost")
        self.frames, self.resets, self.goaway, self.closed = 0, {}, False, threading.Event()
        self.ended, self.change = set(), threading.Condition()
        self.initial, self.sent, self.allowed = 65535, {}, {0: 65535}  # flow control
        self.write = threading.Lock()
        if preface:
            self.send(PREFACE + frame(SETTINGS, 0, 0, settings))
        self.thread = threading.Thread(target=self._read, daemon=True)
        if reads:
            self.thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.sock.close()

    def send(self, data):
        """False when the other side has hung up."""
        try:
            with self.write:
                self.sock.sendall(data)
            return True
        except OSError:
            self.closed.set()
            return False

    def _exactly(self, n):
        out = b""
        while len(out) < n:
            part = self.sock.recv(n - len(out))
            if not part:
                raise OSError("closed")
            out += part
        return out

    def _read(self):
        try:
            self.sock.settimeout(None)
            while True:
                head = self._exactly(9)
                payload = self._exactly(int.from_bytes(head[:3], "big"))
                kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big") & 0x7fffffff
                if kind == SETTINGS and not flags & ACK:
                    for at in range(0, len(payload), 6):
                        key, value = struct.unpack(">HI", payload[at:at + 6])
                        if key == 4:
                            self.initial = value
                    self.send(frame(SETTINGS, ACK, 0))
                elif kind == PING and not flags & ACK:
                    self.send(frame(PING, ACK, 0, payload))
                with self.change:
                    self.frames += 1
                    if kind == RST_STREAM:
                        self.resets[stream] = int.from_bytes(payload, "big")
                    elif kind == WINDOW_UPDATE:
                        self.allowed[stream] = self.allowed.get(stream, 0) + int.from_bytes(payload, "big")
                    elif kind == GOAWAY:
                        self.goaway = True
                    if kind in (HEADERS, DATA) and flags & END_STREAM or kind == RST_STREAM:
                        self.ended.add(stream)
                    self.change.notify_all()
        except (OSError, ValueError):
            pass
        self.closed.set()
        with self.change:
            self.change.notify_all()

    def room(self, stream):
        """What flow control lets this stream send now."""
        return min(self.allowed[0] - self.sent.get(0, 0),
                   self.initial + self.allowed.get(stream, 0) - self.sent.get(stream, 0))

    def data(self, stream, data, flags=0):
        """DATA in frames, as flow control allows; False when the stream or the connection is over."""
        while True:
            if not self.wait(lambda: stream in self.ended or self.room(stream) > 0) or stream in self.ended:
                return False
            n = min(self.room(stream), 16384, len(data))
            part, data = data[:n], data[n:]
            for key in (0, stream):
                self.sent[key] = self.sent.get(key, 0) + n
            if not self.send(frame(DATA, 0 if data else flags, stream, part)):
                return False
            if not data:
                return True

    def wait(self, check, seconds=30):
        """Until check() is true, or the other side has hung up: then False."""
        end = time.monotonic() + seconds
        with self.change:
            while not check():
                if self.closed.is_set() or time.monotonic() > end:
                    return False
                self.change.wait(0.5)
            return True

    def is_closed(self, seconds):
        return self.closed.wait(seconds)
