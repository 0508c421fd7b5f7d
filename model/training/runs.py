"""A run's folder: what it is, what it said, what others ask of it, and what it needs to go on.

    recipe.toml  run.json  metrics.jsonl  control  first_batch/  state/  model/  adapter/  contrastive/

Everything is written to a name of its own first and moved into place, so a crash at any moment leaves a whole one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import stat
import sys
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import NoneType
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.errors import InputError
from model.training.data.ledger import read_stage_ledgers
from model.training.events import Event
from model.training.first_batch import ROWS, BatchRow
from model.training.locks import hold, is_held

FORMAT = 1
RECIPE, RUN, METRICS, CONTROL = "recipe.toml", "run.json", "metrics.jsonl", "control"
STATE, MODEL, ADAPTER, TOWER, LOCK = "state", "model", "adapter", "contrastive", ".lock"
FIRST_BATCH = "first_batch"
WEIGHTS = ("model.safetensors", "adapter_model.safetensors")
"""What the folder of a model holds, whichever it is: a checkpoint, or an adapter beside its base."""
STATUSES = ("running", "paused", "stopped", "done", "failed")
RUN_KINDS: dict[str, Any] = {
    "status": str,
    "base_fingerprint": str,
    "fingerprint": (str, NoneType),
    "error": (str, NoneType),
    "pid": int,
    "step": int,
    "stage": str,
    "stage_index": int,
}
"""What run.json holds at least, and of which kind."""
STATE_KINDS: dict[str, Any] = {"stage_index": int, "stage": str, "step": int, "position": int, "seconds": (int, float)}
STATE_FILES = ("values.json", "tensors.safetensors")
LARGEST = 1 << 20
"""Bytes of a small file; one that is larger wasn't written here."""
WRITE_ERRORS = (OSError, SafetensorError)
"""What writing a file may raise: a full disk comes as either."""


def write_text(path: Path, text: str) -> None:
    """Replaces the file in one go; a reader sees the old or the new, never a part."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def without_answers(event: Mapping[str, Any]) -> dict[str, Any]:
    """A line of ``metrics.jsonl`` without the texts of held-out questions and answers, which belong to the data."""
    return {key: value for key, value in event.items() if key != "answers"}


def forget_answers(folder: Path) -> None:
    """Takes the texts of held-out questions and answers out of a run's metrics, what its account of the data quotes of
    them, and its first batches, once its data are deleted: losses, shares and counts stay. OSError where a file can't
    be replaced or removed."""
    if (folder / FIRST_BATCH).is_dir():
        shutil.rmtree(folder / FIRST_BATCH)
    with contextlib.suppress(InputError):  # a run that is damaged, or not begun, has no account
        run = RunFolder(folder)
        ledgers = read_stage_ledgers(run.read_run().get("ledger"))
        run.update_run(ledger={name: ledger.without_places().to_json() for name, ledger in ledgers.items()})
    path = folder / METRICS
    if not path.exists():
        return
    lines = []
    for line in path.read_bytes().decode("utf-8", errors="replace").split("\n"):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue  # a line that was cut by the end of the process, or is none
        if isinstance(event, dict):
            lines.append(json.dumps(without_answers(event), ensure_ascii=False))
    write_text(path, "".join(line + "\n" for line in lines))


def read_small(path: Path) -> str:
    """The text of a file that was written by :func:`write_text`. OSError where it can't be read, also for what is no
    plain file and might never end; ValueError for one that is no text or too large."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe that nobody writes to would block
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is no plain file", str(path))
        content = b""
        while len(content) <= LARGEST and (part := os.read(handle, LARGEST + 1)):
            content += part
    finally:
        os.close(handle)
    if len(content) > LARGEST:
        raise ValueError("it is too large")
    return content.decode("utf-8")


def read_values(path: Path) -> dict[str, Any]:
    """The JSON object in a small file, its text without lone surrogates, which nothing could write down again. OSError
    and ValueError as :func:`read_small`."""
    try:
        values = json.loads(read_small(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no valid JSON: {error}") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(values, dict):
        raise ValueError("it is no JSON object")
    return {
        key: value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
        for key, value in values.items()
    }


class RunFolder:
    """The folder ``path``. Only the main process of a run writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: weakref.finalize | None = None

    def create(self, recipe: str, base_fingerprint: str) -> None:
        """InputError if there is a run already, or the folder can't be written."""
        if (self.path / RUN).exists():
            raise InputError(f"{self.path} holds a run already; add --resume to go on with it, or name another folder.")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock()
            write_text(self.path / RECIPE, recipe)
        except OSError as error:
            raise InputError(f"The folder {self.path} can't be written ({error.strerror}); name another.") from error
        command = " ".join(["python -m model.training", *sys.argv[1:]])
        created = datetime.now(UTC).isoformat(timespec="seconds")
        self._write_run(
            {
                "format": FORMAT,
                "id": secrets.token_urlsafe(9),
                "created": created,
                "command": command,
                "status": "running",
                "stage": "",
                "stage_index": 0,
                "step": 0,
                "base_fingerprint": base_fingerprint,
                "fingerprint": None,
                "pid": os.getpid(),
                "error": None,
            }
        )

    def reopen(self, recipe: str | None = None) -> None:
        """Takes the folder over to go on with it: clears away what a killed process left half written, and writes the
        ``recipe`` where it was changed. InputError if another process is still training here."""
        self.lock()
        for left in self.path.glob(".*-*"):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
        if recipe is not None:
            write_text(self.path / RECIPE, recipe)

    def lock(self) -> None:
        """Keeps other processes from training here until :meth:`unlock` or this one's end, however it comes."""
        handle = hold(self.path / LOCK)
        if handle is None:
            raise InputError(f"Another process is training in {self.path}; stop it first.")
        self._lock = weakref.finalize(self, os.close, handle)

    @property
    def is_locked(self) -> bool:
        """Whether a process trains here."""
        return is_held(self.path / LOCK)

    def unlock(self) -> None:
        if self._lock is not None:
            self._lock()

    def read_run(self) -> dict[str, Any]:
        """InputError if there is none, it is damaged, or it is another version's."""
        try:
            values = read_values(self.path / RUN)
        except OSError as error:
            raise InputError(f"{self.path} holds no run ({RUN} can't be read: {error.strerror}).") from error
        except ValueError as error:
            raise InputError(f"{self.path / RUN} is damaged ({error}); start the run anew from {RECIPE}.") from error
        if values.get("format") != FORMAT:
            raise InputError(
                f"{self.path} was written by another version (format {str(values.get('format'))[:20]}, this one reads "
                f"{FORMAT}); start the run anew from its recipe.toml."
            )
        for key, kinds in RUN_KINDS.items():
            if not isinstance(values.get(key), kinds) or isinstance(values.get(key), bool):
                found = f"has {key} = {str(values[key])[:20]!r}" if key in values else f"lacks {key}"
                raise InputError(f"{self.path / RUN} is damaged (it {found}); start the run anew from {RECIPE}.")
        if values["status"] not in STATUSES:
            raise InputError(
                f"{self.path / RUN} is damaged (its status is {values['status'][:20]!r}); start the run "
                f"anew from {RECIPE}."
            )
        return {"error": None, "fingerprint": None, **values}

    def update_run(self, **values: Any) -> None:
        self._write_run({**self.read_run(), **values})

    def _write_run(self, values: Mapping[str, Any]) -> None:
        write_text(self.path / RUN, json.dumps(values, indent=2, ensure_ascii=False) + "\n")

    def append(self, event: Event) -> None:
        """One line more in ``metrics.jsonl``."""
        line = json.dumps(event.to_json(), ensure_ascii=False, allow_nan=False)
        with (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def keep_first_batch(self, stage_index: int, stage: str, rows: Iterable[BatchRow]) -> None:
        """What a stage begins with; one that goes on has kept it already. OSError where that can't be."""
        path = self.path / FIRST_BATCH / f"{stage_index}.json"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            write_text(path, json.dumps({"stage": stage, "rows": [row.to_json() for row in rows]}))

    def read_first_batch(self, stage_index: int) -> tuple[BatchRow, ...]:
        """Nothing where the stage hasn't begun, its data are deleted, or what is there is damaged: it is only shown."""
        try:
            values = read_values(self.path / FIRST_BATCH / f"{stage_index}.json")
            return tuple(map(BatchRow.from_json, values["rows"]))[:ROWS]
        except (OSError, ValueError, KeyError, TypeError):
            return ()

    def forget_after(self, stage_index: int, stages: list[str], step: int) -> None:
        """Takes back what was said after the state that a run goes on from, so that no step stands there twice."""
        path = self.path / METRICS
        if not path.exists():
            return
        if not path.is_file():
            raise InputError(f"{path} is no plain file, so nothing can be written there; move it away and go on.")
        # A cut line may end inside a character, and only "\n" ends a line: answers may hold Unicode's other line ends.
        lines = path.read_bytes().decode("utf-8", errors="replace").split("\n")
        later = set(stages[stage_index + 1 :])
        kept = []
        for line in lines:
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                continue  # a line that was cut by the end of the process, or that nobody here wrote
            if not isinstance(event, dict):
                continue
            stage, at, ends = event.get("stage"), event.get("step", 0), event.get("event") in ("done", "failed")
            if not isinstance(stage, str) or not isinstance(at, int):
                continue
            if not ends and stage not in later and (stage != stages[stage_index] or at <= step):
                kept.append(line)
        write_text(path, "".join(line + "\n" for line in kept))

    @property
    def request(self) -> str:
        """What others ask: "pause", "stop" or "run". Anything else, and a file that can't be read, is "run": a slip of
        whoever writes there must not end a long run."""
        try:
            asked = read_small(self.path / CONTROL).strip()
        except (OSError, ValueError):
            return "run"
        return asked if asked in ("pause", "stop") else "run"

    def clear_request(self) -> None:
        """Forgets what was asked, as of a process that is gone."""
        (self.path / CONTROL).unlink(missing_ok=True)

    def save_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Tensors and plain values to go on from. The folder is complete before ``latest`` names it. InputError where
        the disk is full or can't be written; the state before stays."""
        root = self.path / STATE
        name = f"{values['stage_index']}-{values['step']:07d}-{secrets.token_hex(3)}"
        folder = root / name
        try:
            folder.mkdir(parents=True)
            save_file(
                {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()},
                folder / "tensors.safetensors",
            )
            write_text(folder / "values.json", json.dumps(values))
            with (folder / "tensors.safetensors").open("rb") as file:
                os.fsync(file.fileno())
            write_text(root / "latest", name)
        except WRITE_ERRORS as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise InputError(f"The state can't be saved in {root} ({error}); the one before it is kept.") from error
        for other in root.iterdir():
            if other.is_dir() and other.name != name:
                shutil.rmtree(other, ignore_errors=True)

    def load_state(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The last whole state; None if none was saved yet. InputError if it is damaged."""
        try:
            folder = self._latest_state()
            if folder is None:
                return None
            values = read_values(folder / "values.json")
            for key, value in values.items():
                if not isinstance(value, STATE_KINDS.get(key, object)):
                    raise ValueError(f"its {key} is {str(value)[:20]!r}")
            return load_file(folder / "tensors.safetensors"), values
        except (OSError, SafetensorError, ValueError) as error:
            where = self.path / STATE
            raise InputError(f"The state in {where} can't be read ({error}); start the run anew.") from error

    def _latest_state(self) -> Path | None:
        """OSError or ValueError where the name of it can't be read."""
        try:
            name = read_small(self.path / STATE / "latest").strip()
        except FileNotFoundError:
            return None
        return self.path / STATE / (Path(name).name or "unnamed")

    @property
    def saved_state(self) -> bool | None:
        """Whether there is a state to go on from; None if what is there is damaged, as far as a short look tells."""
        try:
            folder = self._latest_state()
            return folder is not None and (all((folder / name).is_file() for name in STATE_FILES) or None)
        except (OSError, ValueError):
            return None


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder to fill; put in ``folder``'s place when the block ends well, thrown away otherwise. InputError where
    it can't be written."""
    try:
        with _staged(folder) as staging:
            yield staging
    except WRITE_ERRORS as error:
        raise InputError(f"{folder} can't be written ({error}); what was there before is kept.") from error


@contextlib.contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield staging
        old = folder.with_name(f".{folder.name}-old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        staging.chmod(0o755)
        staging.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
