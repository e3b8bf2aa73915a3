"""A saved model over HTTP: rows in, the predictions of all tasks out, in the protocol of MLflow's scoring server.

Called by `polyshot serve`. It loads no MLflow: that server checks rows against the types of five example rows, so that
a number that is missing for the first time would be refused, and answers faults with tracebacks. Here a row is judged
by what the model was trained with, and a fault is one sentence. It never writes anything.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from importlib.metadata import version
from io import BytesIO
from ipaddress import ip_address
from typing import Any

import pandas as pd
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from polyshot.data.columns import row_name
from polyshot.errors import DataError, ResourceError, RunError, did_you_mean
from polyshot.saved_model import SavedModel

MAX_BYTES = 64 * 2**20  # of one request
FORMATS = ("dataframe_records", "dataframe_split")
_LOOPBACK_NAMES = ["localhost", "127.0.0.1", "[::1]", "::1"]


def serve_model(model: SavedModel, host: str, port: int, started: Callable[[str], None]) -> None:
    """Answer requests until the process is told to stop (SIGINT, SIGTERM).

    Args:
        port: 0 for any that is free.
        started: called with the server's address once it listens.

    Raises:
        RunError: for a model that reads images.
        ResourceError: when the address cannot be listened on.
        KeyboardInterrupt: after a SIGINT, when all requests under way are answered.
    """
    with _listening(host, port) as listener:
        config = uvicorn.Config(application(model, is_loopback(host)), log_level="warning", lifespan="off")
        shown = f"[{host}]" if ":" in host else host
        started(f"http://{shown}:{listener.getsockname()[1]}")
        uvicorn.Server(config).run(sockets=[listener])


def application(model: SavedModel, only_loopback: bool = True) -> Starlette:
    """The server as an ASGI application, for a server of one's own.

    `POST /invocations` predicts; `GET /ping` and `/health` answer once the model is loaded; `GET /` tells what the
    model reads and gives; `/version` is MLflow's. Nothing is answered to web pages of other sites: there are no CORS
    headers, a body must declare its type, and with `only_loopback` the address asked for must be this machine's.

    Raises:
        RunError: for a model that reads images.
    """
    pictures = [name for name, kind in model.features.kinds.items() if kind == "image"]
    if pictures:  # a path in a request would be one of this machine's files
        raise RunError(f"the model reads images ('{pictures[0]}'), which are not served; use `polyshot predict`")
    about = _about(model)

    async def invocations(request: Request) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in _READERS:
            shown = f"'{kind}'" if kind else "none"
            raise HTTPException(415, f"the content type must be application/json or text/csv, got {shown}")
        body = await _body(request)
        return JSONResponse({"predictions": await run_in_threadpool(answer, model, _READERS[kind], body)})

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def description(_: Request) -> Response:
        return JSONResponse(about)

    async def mlflow_version(_: Request) -> Response:
        return PlainTextResponse(version("mlflow"))

    return Starlette(
        routes=[
            Route("/", description),
            Route("/ping", health),
            Route("/health", health),
            Route("/version", mlflow_version),
            Route("/invocations", invocations, methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=_LOOPBACK_NAMES)] if only_loopback else [],
        exception_handlers={DataError: _bad_rows, HTTPException: _bad_request, Exception: _our_fault},
    )


def is_loopback(host: str) -> bool:
    """Whether a server on `host` can be reached from this machine only."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def answer(model: SavedModel, read: Callable[[bytes], pd.DataFrame], body: bytes) -> list[dict[str, Any]]:
    """One object per row, with the columns of `SavedModel.predict`; what is undefined is null.

    Raises:
        DataError: when the body holds no rows, or rows that the model was not trained for.
    """
    table = read(body)
    if table.empty:
        raise DataError("there are no rows; give at least one")
    predicted = model.predict(table)
    plain = predicted.astype(object).where(predicted.notna(), None)
    return [dict(zip(plain.columns, row, strict=True)) for row in plain.itertuples(index=False)]


def curl(model: SavedModel, address: str, row: dict[str, Any]) -> str:
    """The command that asks the server at `address` about `row`."""
    known = {name: row.get(name) for name in model.features.columns}
    body = json.dumps({"dataframe_records": [known]}, ensure_ascii=False, default=str).replace("'", r"'\''")
    return f"curl -s {address}/invocations -H 'Content-Type: application/json' -d '{body}'"


# --- requests --------------------------------------------------------------------------------------------------------


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BYTES:
            raise HTTPException(413, f"the request is larger than {MAX_BYTES >> 20} MiB; send fewer rows at a time")
    return bytes(body)


def _rows_of_json(body: bytes) -> pd.DataFrame:
    """The rows of {"dataframe_records": [{column: value}]} or {"dataframe_split": {"columns": …, "data": …}}."""

    def no_number(word: str) -> Any:
        raise DataError(f"the body holds {word}, which JSON has not; write null for a missing value")

    try:
        value = json.loads(body, parse_constant=no_number, parse_int=_whole_number)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the body is no JSON ({error}); correct it") from None
    if not isinstance(value, dict) or len(given := [key for key in FORMATS if key in value]) != 1:
        hint = did_you_mean(next(iter(value)), FORMATS) if isinstance(value, dict) and value else ""
        raise DataError(f"the body must be a JSON object with one of {' and '.join(FORMATS)}.{hint}")
    rows = value[given[0]]
    columns, values = _of_records(rows) if given[0] == "dataframe_records" else _of_split(rows)
    for number, row in enumerate(values):
        compound = [name for name, cell in zip(columns, row, strict=True) if isinstance(cell, list | dict)]
        if compound:
            raise DataError(
                f"the column '{compound[0]}' holds a list or an object in {row_name(number)}; give a single value"
            )
    return pd.DataFrame(values, columns=columns).infer_objects()


def _whole_number(digits: str) -> int | float:
    return int(digits) if len(digits) < 19 else float(digits)  # beyond 64 bits only as precisely as tables hold them


def _of_records(rows: Any) -> tuple[list[str], list[list[Any]]]:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError("dataframe_records must be a list of objects, one per row: [{column: value, ...}, ...]")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    for number, row in enumerate(rows):
        if absent := [name for name in columns if name not in row]:
            raise DataError(f"{row_name(number)} has no '{absent[0]}', which others have; write null if it is unknown")
    return columns, [[row[name] for name in columns] for row in rows]


def _of_split(rows: Any) -> tuple[list[str], list[list[Any]]]:
    columns, values = (rows.get("columns"), rows.get("data")) if isinstance(rows, dict) else (None, None)
    if not isinstance(columns, list) or not all(isinstance(name, str) for name in columns):
        raise DataError('dataframe_split must be {"columns": [names], "data": [[values of a row], ...]}')
    if not isinstance(values, list) or not all(isinstance(row, list) and len(row) == len(columns) for row in values):
        raise DataError(f"dataframe_split.data must be a list of rows of {len(columns)} values, one for each column")
    return columns, values


def _rows_of_csv(body: bytes) -> pd.DataFrame:
    try:
        return pd.read_csv(BytesIO(body), encoding="utf-8-sig", low_memory=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise DataError(f"the body is no CSV with a header, in UTF-8 ({error}); correct it") from None


_READERS = {"application/json": _rows_of_json, "text/csv": _rows_of_csv}


# --- answers ---------------------------------------------------------------------------------------------------------


def _about(model: SavedModel) -> dict[str, Any]:
    return {
        "study": model.study.name,
        "inputs": {name: model.features.kinds[name] for name in model.features.columns},
        "tasks": {target.task: target.kind for target in model.targets},
    }


async def _bad_rows(_: Request, error: Exception) -> Response:
    return JSONResponse({"error_code": "BAD_REQUEST", "message": str(error)}, status_code=400)


async def _bad_request(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "ENDPOINT_NOT_FOUND"}.get(error.status_code, "BAD_REQUEST")
    return JSONResponse({"error_code": code, "message": error.detail}, error.status_code, error.headers)


async def _our_fault(_: Request, error: Exception) -> Response:
    message = f"this is a fault of Polyshot, not of the request: {type(error).__name__}; see the server's log"
    return JSONResponse({"error_code": "INTERNAL_ERROR", "message": message}, status_code=500)


# --- the address -----------------------------------------------------------------------------------------------------


def _listening(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()  # from here on who asks is kept waiting, not turned away
    except OSError as error:
        raise ResourceError(
            f"serve: {host}:{port} cannot be listened on ({error.strerror}); choose another with --port or --host"
        ) from None
    return listener
