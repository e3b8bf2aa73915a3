"""`polyshot sync`: sends to MLflow, now and in this process, what waits on disk because the server was away.

Called by the command line and from Python. It replays the spools of producers that have gone; live ones have a writer.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from polyshot.errors import TrackingError
from polyshot.study import Study
from polyshot.tracking import spool as files
from polyshot.tracking.store import resolve, secrets_of, without_credentials

LOCK_SECONDS = 30.0


@dataclass(frozen=True)
class Synced:
    """What a sync did; as text, a sentence for the user.

    Attributes:
        sent: events that MLflow has now.
        rejected: events that it refused for good.
        elsewhere: events that wait for other addresses or experiments than the study's, by `address, experiment`.
        folder: where the writer's log is.
    """

    sent: int
    rejected: int
    elsewhere: dict[str, int]
    folder: Path

    def __str__(self) -> str:
        words = [f"{self.sent} events were sent to MLflow" if self.sent else "nothing was waiting for MLflow"]
        if self.rejected:
            words.append(f"it refused {self.rejected}, see {self.folder / files.LOG}")
        words += [f"{count} events wait for {place}" for place, count in self.elsewhere.items()]
        return "; ".join(words)


def sync(study: Study) -> Synced:
    """Send every event of the study that waits for its tracking store.

    Raises:
        TrackingError: when the store cannot be used, or gives up in the middle; what is not sent stays on disk.
    """
    store = resolve(study)
    store.check()
    home = (study.storage_folder / "spool").absolute()
    folder = files.destination(home, store)
    elsewhere = {}
    for other in home.iterdir():
        if other != folder and (waiting := _waiting(other)):
            identity = files.identity(other)
            elsewhere[f"{identity['uri']}, experiment {identity['experiment']}"] = waiting
    if not files.spools(folder):
        return Synced(0, 0, elsewhere, folder)

    from polyshot.tracking.writer import connect, prepare_mlflow, replay_all

    store = prepare_mlflow(store)
    with (folder / files.LOCK).open("a") as lock:
        deadline = time.monotonic() + LOCK_SECONDS
        while not files.try_lock(lock):
            if time.monotonic() > deadline:
                raise TrackingError(f"tracking: another process is writing the events in {folder}; wait for it")
            time.sleep(0.1)
        before = files.State.load(folder).rejected
        try:
            replay = connect(folder, store)
            sent = replay_all(replay)
        except TrackingError:
            raise
        except Exception as error:
            reason = without_credentials(str(error).strip().partition("\n")[0], *secrets_of(store.uri))
            raise TrackingError(
                f"{store.origin}: MLflow at {store.shown} failed while events were sent ({reason}); "
                f"{_waiting(folder)} are kept, run `polyshot sync` again"
            ) from error
    rejected = sum(replay.state.rejected.values()) - sum(before.values())
    return Synced(sent - rejected, rejected, elsewhere, folder)


def _waiting(folder: Path) -> int:
    """Events in a destination's folder that MLflow does not have."""
    state = files.State.load(folder)
    return sum(files.count_events(spool, state.offsets.get(spool.name, 0)) for spool in files.spools(folder))
