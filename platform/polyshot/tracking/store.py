"""Where a study's runs are recorded: the address, who named it, and whether it can be used.

Called by the tracker, the writer and the readers of runs. It asks cheaply and creates nothing; it never imports MLflow,
and no word that it gives holds a user's name or password.
"""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from polyshot import working_copy
from polyshot.errors import TrackingError
from polyshot.study import Study

CHECK_SECONDS = 3.0
DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
SQLITE_HEADER = b"SQLite format 3\x00"
DISK = "sqlite:///"


@dataclass(frozen=True)
class Store:
    """An MLflow tracking store.

    Attributes:
        uri: the tracking URI; it may hold credentials and is never shown.
        origin: what named it: `tracking.uri`, `MLFLOW_TRACKING_URI` or `storage`.
        experiment: the MLflow experiment of the study.
        artifacts: the folder for artifacts of an experiment that has to be created.
    """

    uri: str
    origin: str
    experiment: str
    artifacts: Path

    @property
    def shown(self) -> str:
        """The address without credentials."""
        return without_credentials(self.uri)

    @property
    def words(self) -> str:
        """Where a person finds the runs."""
        where = self.shown if self.is_server else f"{self.shown} (polyshot ui opens it)"
        return f"MLflow: experiment '{self.experiment}' at {where}"

    @property
    def is_server(self) -> bool:
        return urlsplit(self.uri).scheme.lower() in ("http", "https")

    @property
    def sqlite_file(self) -> Path | None:
        return Path(self.uri.removeprefix(DISK).partition("?")[0]) if self.uri.startswith(DISK) else None

    def check(self) -> None:
        """Find out, within a few seconds and without creating anything, whether the store can be used.

        Raises:
            TrackingError: when it cannot.
        """
        address = urlsplit(self.uri)
        scheme = address.scheme.lower().partition("+")[0]
        if self.is_server:
            self._check_server(address)
        elif self.sqlite_file is not None:
            self._check_sqlite(self.sqlite_file)
        elif scheme in DATABASE_PORTS:
            self._check_database(address, DATABASE_PORTS[scheme])
        else:
            raise TrackingError(
                f"{self.origin}: '{self.shown}' is no address of an MLflow store; give http://HOST:PORT of a server, "
                f"{DISK}FILE or the URL of a database"
            )

    def _check_server(self, address: SplitResult) -> None:
        import requests  # as MLflow asks: with the same proxies and certificates

        url = self.shown.rstrip("/") + "/health"
        insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("1", "true")
        verify = False if insecure else os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or True
        try:
            if not address.hostname:
                raise requests.exceptions.InvalidURL("it has no host")
            with requests.get(url, timeout=CHECK_SECONDS, verify=verify, stream=True) as answer:
                fault = f"answers {answer.status_code}" if answer.status_code >= 500 else ""
        except requests.exceptions.Timeout:
            fault = f"does not answer within {CHECK_SECONDS:g} s"
        except requests.exceptions.SSLError:
            fault = "has a certificate that is not trusted here"
        except requests.exceptions.ConnectionError:
            fault = "cannot be reached"
        except (requests.exceptions.RequestException, ValueError):
            fault = "is not a valid address"
        if fault:
            raise TrackingError(
                f"{self.origin}: the MLflow server at {self.shown} {fault}; start it, or mend {self.origin}"
            )

    def _check_sqlite(self, file: Path) -> None:
        if file.name in ("", ":memory:"):
            raise TrackingError(
                f"{self.origin}: '{self.shown}' names no file, and runs must outlive the process; add one"
            )
        try:
            if file.exists():
                with file.open("r+b") as database:
                    start = database.read(len(SQLITE_HEADER))
                if start not in (b"", SQLITE_HEADER):
                    raise TrackingError(f"{self.origin}: {file} is not a SQLite database; name another file")
        except OSError as error:
            raise TrackingError(
                f"{self.origin}: the MLflow store {file} cannot be written ({error.strerror}); "
                "mend its permissions or name another"
            ) from None
        folder = next(parent for parent in file.parents if parent.exists())
        if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
            raise TrackingError(
                f"{self.origin}: the MLflow store {file} cannot be created, {folder} cannot be written; "
                "mend its permissions or name another"
            )

    def _check_database(self, address: SplitResult, port: int) -> None:
        kind, _, driver = address.scheme.lower().partition("+")
        driver = driver or "psycopg"  # as SQLAlchemy
        if kind == "postgresql" and find_spec(driver) is None:
            raise TrackingError(
                f"{self.origin}: {self.shown} needs the package '{driver}'; install it (psycopg: polyshot[postgresql])"
            )
        try:
            if not address.hostname:
                raise ValueError
            socket.create_connection((address.hostname, address.port or port), timeout=CHECK_SECONDS).close()
        except (OSError, ValueError):
            raise TrackingError(
                f"{self.origin}: the database at {self.shown} cannot be reached; start it, or mend {self.origin}"
            ) from None


def resolve(study: Study) -> Store:
    """The store that the study names, else MLFLOW_TRACKING_URI, else a SQLite file in the storage folder."""
    storage = working_copy.folder_of(study.storage).expanduser().absolute()
    given = [("tracking.uri", study.tracking.uri), ("MLFLOW_TRACKING_URI", os.environ.get("MLFLOW_TRACKING_URI"))]
    origin, uri = next(((origin, uri) for origin, uri in given if uri), ("storage", f"{DISK}{storage / 'mlflow.db'}"))
    if uri.startswith(DISK) and uri != DISK:  # the writer may start elsewhere
        file, mark, options = uri.removeprefix(DISK).partition("?")
        uri = f"{DISK}{file if file == ':memory:' else Path(file).expanduser().absolute()}{mark}{options}"
    return Store(uri, origin, study.tracking.experiment or study.name, storage / "mlartifacts")


def without_credentials(text: str, *secrets: str) -> str:
    """The text with the user part of every URL in it, and every one of `secrets`, blotted out."""
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    return re.sub(r"(?<=://)[^/\s?#\"'<>]+@", "***@", text)


def without_login(uri: str) -> tuple[str, dict[str, str]]:
    """A server's address without user and password, and the environment in which MLflow finds them instead.

    MLflow prints the address in many places; what it does not know it cannot print.
    """
    address = urlsplit(uri)
    if address.scheme.lower() not in ("http", "https") or not address.username or not address.password:
        return uri, {}
    login = {"USERNAME": address.username, "PASSWORD": address.password}
    return (
        address._replace(netloc=address.netloc.rpartition("@")[2]).geturl(),
        {f"MLFLOW_TRACKING_{name}": unquote(value) for name, value in login.items()},
    )


def secrets_of(uri: str) -> list[str]:
    """What must never be shown: the credentials in a URI and those that MLflow takes from the environment."""
    user_part = urlsplit(uri).netloc.rpartition("@")[0]
    names = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
    return [user_part, user_part.partition(":")[2], *(os.environ.get(name, "") for name in names)]
