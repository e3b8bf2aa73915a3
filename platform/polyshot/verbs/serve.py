"""`polyshot serve`: a trained model that answers over HTTP, on this machine only unless told otherwise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from polyshot.errors import RunError
from polyshot.verbs.predict import find_model, load_model

LOOPBACK = "127.0.0.1"


def serve(
    run: str | Path,
    *,
    host: str = LOOPBACK,
    port: int = 8000,
    storage: str | Path = "polyshot-runs",
    tell: Callable[[str], object] = lambda _: None,
) -> None:
    """Serve a model until the process is stopped: `POST /invocations` with rows gives the predictions of all tasks.

    Args:
        run: as `predict`.
        host: the address to listen on; anything but loopback lets others in, without a password.
        port: 0 for any that is free.
        tell: is given what a user should know, a line at a time, once the server listens.

    Raises:
        RunError: when there is no such run, or its model reads images.
        ResourceError: when the address cannot be listened on.
        KeyboardInterrupt: after Ctrl-C, once the requests under way are answered.
    """
    folder = find_model(str(run), storage)
    model = load_model(folder)
    from polyshot.saved_model import SavedModel, read_example
    from polyshot.serving import curl, is_loopback, serve_model

    if not isinstance(model, SavedModel):
        raise RunError(f"{folder}: is a model of pictures, which is not served; use `polyshot predict`")
    row = read_example(folder)

    def started(address: str) -> None:
        tell(f"{', '.join(target.task for target in model.targets)} of '{model.study.name}' at {address}")
        if not is_loopback(host):
            tell("whoever reaches this address may ask, without a password; put TLS and a log-in before it")
        tell(f"try       {curl(model, address, row)}")
        tell("stop      Ctrl-C")

    serve_model(model, host, port, started)
