"""The MLflow UI over a study's store, on this machine.

Called by `polyshot ui`; the process becomes MLflow's server and ends with Ctrl-C. It listens on loopback unless told.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import NoReturn

from polyshot import working_copy
from polyshot.errors import TrackingError
from polyshot.study import Study
from polyshot.tracking.store import DISK, Store, resolve


def serve_ui(where: Study | str | Path, port: int = 5000, host: str = "127.0.0.1") -> NoReturn:
    """Become MLflow's server over the store of a study, or over the local store of a storage folder.

    Raises:
        TrackingError: when there is no store yet, it is on a server already, or the port is taken.
    """
    if isinstance(where, Study):
        store = resolve(where)
    else:
        storage = working_copy.folder_of(where).expanduser().absolute()
        store = Store(f"{DISK}{storage / 'mlflow.db'}", "storage", "", storage / "mlartifacts")
    if store.is_server:
        raise TrackingError(f"{store.origin}: the runs are on a server, open {store.shown} in a browser")
    if store.sqlite_file is not None and not store.sqlite_file.exists():
        raise TrackingError(
            f"{store.origin}: there is no MLflow store at {store.sqlite_file} yet; run `polyshot train` first"
        )
    store.check()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise TrackingError(
                f"ui: {host}:{port} cannot be listened on ({error.strerror}); choose another with --port"
            ) from None
    os.environ |= {  # not arguments, which every user of the machine sees
        "MLFLOW_BACKEND_STORE_URI": store.uri,
        "MLFLOW_ARTIFACTS_DESTINATION": str(store.artifacts),
        "MLFLOW_DISABLE_TELEMETRY": os.environ.get("MLFLOW_DISABLE_TELEMETRY", "true"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # several processes, for evaluating language models
    }
    command = [sys.executable, "-P", "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"]
    os.execv(sys.executable, command)  # noqa: S606 - no shell is wanted
