"""Processes that work for strangers have none of the owner's secrets."""

import json
import os
import subprocess
import sys

from inspector.runs.environment import clean_environment
from inspector.runs.processes import kill_group, measure_memory, start_process

SECRETS = {
    "HF_TOKEN": "hf_secret",
    "HUGGING_FACE_HUB_TOKEN": "hf_secret",
    "HUGGINGFACEHUB_API_TOKEN": "hf_secret",
    "AWS_SECRET_ACCESS_KEY": "aws-secret",
    "AWS_SESSION_TOKEN": "aws-secret",
    "GOOGLE_APPLICATION_CREDENTIALS": "/secret",
    "AZURE_CLIENT_SECRET": "secret",
    "OPENAI_API_KEY": "sk-secret",
    "GITHUB_TOKEN": "gh-secret",
    "MY_OWN_SECRET": "secret",
    "DATABASE_URL": "postgres://me:secret@db",
    "SSH_AUTH_SOCK": "/secret",
    "HF_OIDC_RESOURCE": "secret",
    "HTTPS_PROXY": "http://me:secret@proxy:3128",
    "SPACE_CREATOR_USER_ID": "secret",
    "HF_TOKEN_PATH": "/secret/token",
    "WANDB_API_KEY": "secret",
}


def test_a_worker_is_started_without_the_server_s_secrets(tmp_path, monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\nimport json, os\nprint(json.dumps(dict(os.environ)))\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    job = tmp_path / "job"
    job.mkdir()
    worker = start_process(job, resumed=False, threads=3, nice=0)
    assert worker.process.wait(60) == 0
    text = (job / "output.txt").read_text()
    seen = json.loads(text)
    assert "secret" not in text
    assert not set(seen) & set(SECRETS) - {"HF_TOKEN_PATH"}
    assert (seen["OMP_NUM_THREADS"], seen["TMPDIR"], seen["PATH"]) == ("3", str(tmp_path), os.environ["PATH"])


def test_no_token_is_found_in_a_file_either(tmp_path):
    (tmp_path / "token").write_text("hf_secret")
    server = {"PATH": os.environ["PATH"], "HF_HOME": str(tmp_path), "HF_TOKEN": "hf_secret", "HOME": str(tmp_path)}
    ask = "from huggingface_hub import get_token; from huggingface_hub.utils import build_hf_headers as b; "
    ask += "print(get_token(), 'authorization' in b())"
    for environment, found in ((clean_environment(1, server), "None False\n"), (server, "hf_secret True\n")):
        ended = subprocess.run([sys.executable, "-c", ask], env=environment, capture_output=True, text=True)
        assert ended.stdout == found


def test_what_is_handed_on():
    server = {
        "PATH": "/bin",
        "LANG": "C",
        "LC_ALL": "C.UTF-8",
        "HF_HOME": "/hub",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": "/more",
        "HTTP_PROXY": "http://proxy:3128",
        "https_proxy": "http://me:pass@proxy:3128",
        "CUDA_VISIBLE_DEVICES": "0",
        "OTHER": "x",
    }
    found = clean_environment(2, server)
    for name in ("PATH", "LANG", "LC_ALL", "HF_HOME", "HF_HUB_OFFLINE", "HTTP_PROXY", "CUDA_VISIBLE_DEVICES"):
        assert found[name] == server[name]
    assert "OTHER" not in found
    assert "https_proxy" not in found
    assert found["PYTHONPATH"].endswith(f"{os.pathsep}/more")
    assert (found["HF_HUB_DISABLE_IMPLICIT_TOKEN"], found["HF_TOKEN_PATH"]) == ("1", os.devnull)


FORKED = """
import os, time
held = b"x" * (100 << 20)
if os.fork():
    print("ready", flush=True)
time.sleep(60)
"""


def test_memory_that_processes_share_counts_once():
    process = subprocess.Popen([sys.executable, "-c", FORKED], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        assert 100 << 20 < measure_memory(process.pid) < 150 << 20
    finally:
        kill_group(process.pid)
        process.communicate()
