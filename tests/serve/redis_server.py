"""A Redis server on a free port of the loopback interface, for tests. It keeps each acknowledged write."""

import random
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

REDIS = shutil.which("redis-server") if find_spec("redis") else None
MISSING = "needs redis-server (Debian's package redis-server) and the Python package redis (the extra serve)"


def free_port() -> int:
    """A free port, and not one that the system gives to others, so that it is free again after a restart."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


class RedisServer:
    """A server with its data in a folder; the settings that keep acknowledged writes can be overridden."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.port = free_port()
        self.folder = folder
        self.settings = {"appendonly": "yes", "appendfsync": "always", "save": ""} | settings
        self.start()

    def url(self, password: str = "", database: int = 0) -> str:
        return f"redis://{f':{password}@' if password else ''}127.0.0.1:{self.port}/{database}"

    def start(self, seconds: float = 30) -> None:
        arguments = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder)]
        for name, value in self.settings.items():
            arguments += [f"--{name}", *value.split(" ")]
        with (self.folder / "redis.log").open("a") as log:
            self.process = subprocess.Popen([str(REDIS), *arguments], stdout=log, stderr=log)
        deadline = time.monotonic() + seconds
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError((self.folder / "redis.log").read_text())
            time.sleep(0.02)

    def _answers(self) -> bool:
        """Whether it answers and has loaded its data; a demand for the password is an answer."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(how)
        self.process.wait(60)
