"""A line to Redis or to a scheduler that can be cut, held and slowed: a unix socket in front of a unix socket, one
thread.

    cut()        ends all connections and refuses new ones, until through()
    hold()       takes bytes and passes none on, as a network that drops packets, until through()
    slow(s)      passes bytes on after s seconds, until through()
"""
import collections
import os
import selectors
import socket
import threading
import time

CHUNK = 1 << 16


class Pipe:
    """One direction of a connection."""

    def __init__(self, source, sink):
        self.source, self.sink = source, sink
        self.waiting = collections.deque()  # (when it may go on, bytes)


class Proxy:
    def __init__(self, path, target):
        self.path, self.target = str(path), str(target)
        self.mode, self.delay_s, self.pipes, self.stopping = "through", 0.0, [], False
        self.lock = threading.Lock()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(128)
        self.listener.setblocking(False)
        self.wake_r, self.wake_w = os.pipe()
        os.set_blocking(self.wake_r, False)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _set(self, mode, delay_s=0.0):
        with self.lock:
            self.mode, self.delay_s = mode, delay_s
        os.write(self.wake_w, b"x")

    def cut(self):
        self._set("cut")

    def hold(self):
        self._set("hold")

    def slow(self, seconds):
        self._set("through", seconds)

    def through(self):
        self._set("through")

    def close(self):
        self.stopping = True
        os.write(self.wake_w, b"x")
        self.thread.join()
        for s in {x for p in self.pipes for x in (p.source, p.sink)}:
            s.close()
        self.listener.close()
        os.unlink(self.path)

    def _accept(self, selector, mode):
        try:
            client, _ = self.listener.accept()
        except OSError:
            return
        server = socket.socket(socket.AF_UNIX)
        try:
            if mode == "cut":
                raise OSError
            server.connect(self.target)
        except OSError:
            client.close()
            server.close()
            return
        for a, b in ((client, server), (server, client)):
            a.setblocking(False)
            pipe = Pipe(a, b)
            self.pipes.append(pipe)
            selector.register(a, selectors.EVENT_READ, pipe)

    def _drop(self, selector, pipe):
        for p in [p for p in self.pipes if pipe.source in (p.source, p.sink)]:
            self.pipes.remove(p)
            selector.unregister(p.source)
            p.source.close()

    def _send(self, selector, pipe, now):
        while pipe.waiting and pipe.waiting[0][0] <= now:
            at, data = pipe.waiting.popleft()
            try:
                sent = pipe.sink.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._drop(selector, pipe)
                return
            if sent < len(data):
                pipe.waiting.appendleft((at, data[sent:]))
                return

    def _read(self, selector, pipe, now, delay_s):
        if sum(len(d) for _, d in pipe.waiting) > 16 << 20:
            return  # the sink takes nothing: let the source feel it
        try:
            data = pipe.source.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(selector, pipe)
            return
        pipe.waiting.append((now + delay_s, data))

    def _run(self):
        selector = selectors.DefaultSelector()
        selector.register(self.listener, selectors.EVENT_READ, "listener")
        selector.register(self.wake_r, selectors.EVENT_READ, "wake")
        while not self.stopping:
            with self.lock:
                mode, delay_s = self.mode, self.delay_s
            now = time.monotonic()
            due = [p.waiting[0][0] for p in self.pipes if p.waiting] if mode == "through" else []
            wait = 0.5 if not due else max(0.0005, min(due) - now)
            for key, _ in selector.select(wait):
                if key.data == "wake":
                    os.read(self.wake_r, 64)
                elif key.data == "listener":
                    self._accept(selector, mode)
                elif key.data in self.pipes:
                    self._read(selector, key.data, time.monotonic(), delay_s)
            with self.lock:
                mode = self.mode
            if mode == "cut":
                while self.pipes:
                    self._drop(selector, self.pipes[0])
            elif mode == "through":
                for pipe in list(self.pipes):
                    if pipe.waiting and pipe in self.pipes:
                        self._send(selector, pipe, time.monotonic())
        selector.close()
