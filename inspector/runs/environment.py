"""What the processes of strangers' runs and files see of this server's environment: no secret of its owner.

Only what is named here is handed on. A list of what to leave out would be short of the next service's key. No gradio
here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

PASSED = frozenset(
    {
        # where programs and files are
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "SHELL",
        "PWD",
        "TMPDIR",
        "TMP",
        "TEMP",
        "SYSTEMROOT",
        "VIRTUAL_ENV",
        "XDG_CACHE_HOME",
        "LD_LIBRARY_PATH",
        # how they talk
        "LANG",
        "LANGUAGE",
        "TZ",
        "PYTHONHASHSEED",
        "PYTHONWARNINGS",
        "PYTHONUTF8",
        "PYTHONIOENCODING",
        "PYTHONDONTWRITEBYTECODE",
        # what they compute with
        "CUDA_VISIBLE_DEVICES",
        "CUDA_HOME",
        "CUDA_DEVICE_ORDER",
        "NVIDIA_VISIBLE_DEVICES",
        "NVIDIA_DRIVER_CAPABILITIES",
        "HIP_VISIBLE_DEVICES",
        "ROCR_VISIBLE_DEVICES",
        "PYTORCH_CUDA_ALLOC_CONF",
        "PYTORCH_ALLOC_CONF",
        "MALLOC_ARENA_MAX",
        "MKL_ENABLE_INSTRUCTIONS",
        "ATEN_CPU_CAPABILITY",
        "ONEDNN_MAX_CPU_ISA",
        # where models and data of the hub lie, and whether it may be asked
        "HF_HOME",
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
        "HF_DATASETS_CACHE",
        "HF_HUB_OFFLINE",
        "HF_DATASETS_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "HF_ENDPOINT",
        "HF_HUB_ETAG_TIMEOUT",
        "HF_HUB_DOWNLOAD_TIMEOUT",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE",
        "NO_PROXY",
        "no_proxy",
    }
)
"""Names of variables that hold no secret."""
PROXIES = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"})
"""Addresses that may hold a password; those that do are left out."""


def clean_environment(threads: int, server: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of a process that works for a stranger with ``threads``: what :data:`PASSED` names of
    ``server``'s, this app on the path of modules, and no token of the hub, not even the one that is kept in a file."""
    found = {
        name: value
        for name, value in server.items()
        if name in PASSED or name.startswith("LC_") or (name in PROXIES and "@" not in value)
    }
    modules = [str(Path(__file__).parents[2]), *filter(None, (server.get("PYTHONPATH"),))]
    return {
        **found,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join(modules),
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "HF_TOKEN_PATH": os.devnull,
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
