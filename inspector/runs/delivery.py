"""A finished run to take away: as an archive, or on the hub. No gradio here.

What leaves is what :mod:`inspector.runs.discretion` lets: no path of this machine, no text of uploads.
"""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from inspector.files import new_folder
from inspector.runs.discretion import (
    UPLOADS,
    has_uploads,
    hide_paths,
    is_path,
    name_base,
    share_config,
    share_metrics,
    share_recipe,
)
from model import InputError
from model.training.recipe import Recipe, read_recipe
from model.training.runs import ADAPTER, FIRST_BATCH, METRICS, MODEL, RECIPE, WEIGHTS

COMMAND = "python -m model.training run recipe.toml --out RUN"
CONFIGS = ("config.json", "adapter_config.json")
"""Files of a checkpoint and of an adapter that may say where they came from."""


def pack_run(folder: Path, run: dict[str, Any]) -> Path:
    """A zip of a run's folder: the checkpoint in nanoVLM's format and the adapter if there is one, of other families
    that alone; recipe, curves, and how to run it again. InputError if there are no weights yet."""
    _check_weights(folder)
    path = new_folder() / "run.zip"
    try:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for part in (MODEL, ADAPTER):
                for file in sorted((folder / part).rglob("*")) if (folder / part).is_dir() else ():
                    if file.name in CONFIGS:
                        archive.writestr(str(file.relative_to(folder)), _read_config(file))
                    elif file.is_file():
                        # Weights are numbers without a pattern: packing them takes long and gains next to nothing.
                        packed = zipfile.ZIP_STORED if file.suffix == ".safetensors" else None
                        archive.write(file, file.relative_to(folder), packed)
            recipe = read_recipe(folder / RECIPE)
            archive.writestr(RECIPE, _write_recipe(recipe, folder, run))
            if (folder / METRICS).is_file():
                said = (folder / METRICS).read_bytes().decode("utf-8", errors="replace")
                archive.writestr(METRICS, share_metrics(said, has_uploads(recipe)))
            # Its rows are the data's, as answers are.
            kept = () if has_uploads(recipe) else sorted((folder / FIRST_BATCH).glob("*.json"))
            for file in kept:
                archive.write(file, file.relative_to(folder))
            archive.writestr("COMMAND.txt", write_command(recipe) + "\n")
            facts = {key: run.get(key) for key in ("created", "status", "base_fingerprint", "fingerprint")}
            archive.writestr("run.json", json.dumps(facts, indent=2) + "\n")
    except OSError as error:
        raise InputError(f"The archive can't be written ({error.strerror}).") from error
    return path


def write_command(recipe: Recipe) -> str:
    """How the run is run again, beside its recipe and its data; a base that is no name of the hub has to be named."""
    if recipe.parts is not None:
        local = (name for name in ("vision", "language") if is_path(getattr(recipe.parts, name)))
        return "".join((COMMAND, *(f" --set base.{name}=FOLDER" for name in local)))
    return COMMAND if name_base(recipe.base, None) == recipe.base else f"{COMMAND} --set base=FOLDER"


def _write_recipe(recipe: Recipe, folder: Path, run: dict[str, Any]) -> str:
    return share_recipe(recipe, folder.parent.parent / UPLOADS, name_base(recipe.base, run.get("base_fingerprint")))


def _check_weights(folder: Path) -> None:
    if not any((folder / MODEL / name).is_file() for name in WEIGHTS):
        raise InputError("This run has no weights yet; wait until it has ended, or stop it and keep what is there.")


def _read_config(file: Path) -> str:
    try:
        return share_config(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"This run's {file.name} is damaged ({error}); start it anew.") from error


def push_run(folder: Path, run: dict[str, Any], repository: str, token: str) -> str:
    """Uploads the checkpoint, its recipe beside it, to ``owner/name`` on the hub (made, private, if it isn't there);
    its address. The token is used for this and kept nowhere. InputError in one sentence."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repository.strip()):
        raise InputError(f"“{repository.strip()}” is no name on the hub; give owner/name.")
    if not token.strip():
        raise InputError("There is no token; make one that may write on the hub's settings page and paste it here.")
    _check_weights(folder)
    configs = {name: _read_config(folder / MODEL / name) for name in CONFIGS if (folder / MODEL / name).is_file()}
    recipe = _write_recipe(read_recipe(folder / RECIPE), folder, run)
    api = HfApi(token=token.strip())
    try:
        address = api.create_repo(repository.strip(), private=True, exist_ok=True)
        # What says where things came from is written anew; everything else goes as it is.
        api.upload_folder(
            repo_id=repository.strip(),
            folder_path=folder / MODEL,
            commit_message="Checkpoint of a run",
            ignore_patterns=list(CONFIGS),
        )
        for name, text in configs.items():
            api.upload_file(repo_id=repository.strip(), path_in_repo=name, path_or_fileobj=text.encode())
        api.upload_file(repo_id=repository.strip(), path_or_fileobj=recipe.encode(), path_in_repo=RECIPE)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = hide_paths((str(error).strip().splitlines() or [type(error).__name__])[0]).replace(token.strip(), "…")
        raise InputError(f"The hub refused “{repository.strip()}” ({reason}); check name and token.") from error
    return str(address)
