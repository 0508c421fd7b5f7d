"""A finished run to take away: as an archive, or on the hub. No gradio here."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from inspector.files import new_folder
from model import InputError
from model.training.runs import ADAPTER, METRICS, MODEL, RECIPE

COMMAND = "python -m model.training run recipe.toml --out RUN"


def pack_run(folder: Path, run: dict[str, Any]) -> Path:
    """A zip of a run's folder: the checkpoint in nanoVLM's format, the adapter if there is one, recipe, curves, and how
    to run it again. InputError if there is no checkpoint yet."""
    if not (folder / MODEL / "model.safetensors").is_file():
        raise InputError("This run has no weights yet; wait until it has ended, or stop it and keep what is there.")
    path = new_folder() / "run.zip"
    try:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for part in (MODEL, ADAPTER):
                for file in sorted((folder / part).rglob("*")) if (folder / part).is_dir() else ():
                    if file.is_file():
                        archive.write(file, file.relative_to(folder))
            for name in (RECIPE, METRICS):
                if (folder / name).is_file():
                    archive.write(folder / name, name)
            archive.writestr("COMMAND.txt", COMMAND + "\n")
            facts = {key: run.get(key) for key in ("created", "status", "base_fingerprint", "fingerprint")}
            archive.writestr("run.json", json.dumps(facts, indent=2) + "\n")
    except OSError as error:
        raise InputError(f"The archive can't be written ({error.strerror}).") from error
    return path


def push_run(folder: Path, repository: str, token: str) -> str:
    """Uploads the checkpoint, its recipe beside it, to ``owner/name`` on the hub (made, private, if it isn't there);
    its address. The token is used for this and kept nowhere. InputError in one sentence."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repository.strip()):
        raise InputError(f"“{repository.strip()}” is no name on the hub; give owner/name.")
    if not token.strip():
        raise InputError("There is no token; make one that may write on the hub's settings page and paste it here.")
    if not (folder / MODEL / "model.safetensors").is_file():
        raise InputError("This run has no weights yet; wait until it has ended, or stop it and keep what is there.")
    api = HfApi(token=token.strip())
    try:
        address = api.create_repo(repository.strip(), private=True, exist_ok=True)
        api.upload_folder(repo_id=repository.strip(), folder_path=folder / MODEL, commit_message="Checkpoint of a run")
        api.upload_file(repo_id=repository.strip(), path_or_fileobj=folder / RECIPE, path_in_repo=RECIPE)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].replace(token.strip(), "…")
        raise InputError(f"The hub refused “{repository.strip()}” ({reason}); check name and token.") from error
    return str(address)
