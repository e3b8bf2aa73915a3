"""Ray for the length of a verb: embedded in this process, or a cluster that is joined.

What was started here is stopped here; a cluster that was there before is left as it was.
"""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from polyshot import working_copy
from polyshot.cluster import interface
from polyshot.errors import ResourceError
from polyshot.study import Study

_CONNECT_SECONDS = 5.0
_STARTS = 3  # Ray gives a node half a minute to come up, which a machine at its limit may need more than once
# Read by Ray when it starts and inherited by its workers: relative paths mean the same in a trial as here.
_EMBEDDED = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on Linux as well: a node that listens on loopback only
}
_CONSTANTS = ("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "ENABLE_RAY_CLUSTER")
_TOKEN_LOGGER = "ray._private.authentication.authentication_token_setup"  # noqa: S105


@contextmanager
def ray_session(study: Study) -> Iterator[None]:
    """Ray, ready to use inside the block.

    It is the one that the caller has started, else the cluster at `scale.address` or RAY_ADDRESS, else an embedded one.

    Raises:
        ResourceError: when the cluster cannot be reached, or this machine has too few CPUs or does not start Ray.
    """
    if ray.is_initialized():
        yield
        return
    # That a token was made for a Ray that only listens on this machine is nothing that the user could act on.
    logging.getLogger(_TOKEN_LOGGER).setLevel(logging.ERROR)
    address = study.scale.address or os.environ.get("RAY_ADDRESS") or "local"
    before = {name: os.environ.get(name) for name in _EMBEDDED}
    try:
        if address == "local":
            _check_room(study)
            os.environ.update({name: os.environ.get(name, value) for name, value in _EMBEDDED.items()})
            with _alone_on_this_machine():
                _start()
        else:
            _join(address, study)
            check_shared(study.storage_folder)
        yield
    finally:
        ray.shutdown()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _check_room(study: Study) -> None:
    """Refuse at once what this machine cannot hold; what a cluster can is known when it is joined."""
    scale, cpus = study.scale, os.cpu_count() or 1
    workers, threads = scale.min_workers or scale.workers, scale.threads or 1
    if workers > cpus // threads:
        raise ResourceError(
            f"scale.workers {workers} × scale.threads {threads} need more than the {cpus} CPUs of this machine; lower "
            "scale.workers or scale.threads, or name a larger cluster in scale.address"
        )


def nodes() -> Sequence[Mapping[str, float]]:
    """The resources of each node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def check_shared(folder: Path) -> None:
    """See that every node of the cluster has `folder`, where runs are kept, or can use the store that it stands for.

    Raises:
        ResourceError: when one has not: what its workers write there would be lost.
    """
    alive = [node for node in ray.nodes() if node["Alive"]]
    if len(alive) == 1:
        return
    if working_copy.address_of(folder) is not None:
        for address, fault in _from_each(alive, _why_not, folder).items():
            if fault is not None:
                raise ResourceError(f"{fault}, on the node {address} as well")
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"storage: {folder} cannot be made ({error.strerror}); choose another") from error
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".seen-by-all-nodes-") as probe:
        blind = [address for address, sees in _from_each(alive, _sees, probe.name).items() if not sees]
    if blind:
        raise ResourceError(
            f"storage: {folder} is not the same folder on all nodes ({', '.join(sorted(blind))} cannot see it); give "
            "an absolute path on storage that they share"
        )


def _from_each(alive: Sequence[Mapping[str, Any]], ask: Any, argument: Any) -> dict[str, Any]:
    """What a remote function answers on each node, by their addresses."""
    asked = {
        str(node["NodeManagerAddress"]): ask.options(
            num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(argument)
        for node in alive
    }
    return {address: ray.get(answer) for address, answer in asked.items()}


@ray.remote
def _sees(path: str) -> bool:
    return Path(path).exists()


@ray.remote
def _why_not(folder: Path) -> str | None:
    """Why this node cannot use the store that a folder of the driver's stands for, if so."""
    try:
        working_copy.check(working_copy.here(folder))
    except ResourceError as error:
        return str(error)
    return None


@contextmanager
def _alone_on_this_machine() -> Iterator[None]:
    """Has the node listen on loopback, and its workers use the driver's environment.

    Started by `uv run`, Ray would pack up the current folder and build an environment from it for every worker. It
    reads its variables for both when it is imported, which may have been long before.
    """
    constants = ray._private.ray_constants
    before = {name: getattr(constants, name, None) for name in _CONSTANTS}
    for name in before:
        setattr(constants, name, False)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(constants, name, value)


def _start() -> None:
    for attempt in range(_STARTS):
        try:
            ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
            return
        except Exception as error:  # a start that takes too long is a plain Exception in Ray
            ray.shutdown()
            if attempt == _STARTS - 1:
                raise ResourceError(
                    f"Ray does not start on this machine ({_first_line(error)}); free memory, disk or processors, "
                    "or name a running cluster in scale.address"
                ) from error


def _join(address: str, study: Study) -> None:
    place = "scale.address" if study.scale.address else "RAY_ADDRESS"
    _knock(address, place)
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={
                "env_vars": {"RAY_CHDIR_TO_TRIAL_DIR": "0"},
                "worker_process_setup_hook": f"{interface.__name__}.{interface.use_the_nodes_interface.__name__}",
            },
        )
    except (ConnectionError, RuntimeError, OSError, ValueError, ray.exceptions.RayError) as error:
        raise ResourceError(
            f"{place}: no Ray cluster can be joined at '{address}' ({_first_line(error)}); see that it runs, "
            "and that RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH holds its token"
        ) from error


def _knock(address: str, place: str) -> None:
    """See within seconds whether anyone listens, where Ray would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host:  # "auto" and the like: Ray looks on this machine
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise ResourceError(
            f"{place}: nothing answers at '{address}' ({error}); start the cluster, correct the address (host:port of "
            "its head node), or remove it to use this machine"
        ) from None


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
