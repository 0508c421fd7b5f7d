"""What a model takes, told before it is loaded, and what happens when memory runs out all the same."""

import json
import weakref

import pytest
import torch
from safetensors import safe_open

from inspector.__main__ import main
from inspector.row.ask import GenerationSettings, ask_and_inspect
from inspector.row.feature_store import FEATURES
from inspector.row.row_store import ROWS
from inspector.session import ModelStore
from inspector.which_image.study import study_answer
from model import InputError, load_vlm, plan_memory
from model import memory as memory_module
from model.checkpoint import save_vlm
from model.memory import format_bytes, measure_free_ram, refuse_shortage
from tests.example_cases import example_prompt


def test_weights_are_counted_from_the_headers(embedded):
    need = plan_memory("embedded", device="cpu", dtype="bfloat16")
    with safe_open("model/embedded/model.safetensors", framework="pt") as file:
        count = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118 (not a dict)
    assert need.weights == 2 * count
    assert plan_memory("embedded", dtype="float32").weights == 2 * need.weights
    assert embedded.n_parameters <= count


@pytest.mark.parametrize("name", ["embedded", "idefics3", "llava"])
def test_keys_and_values_are_what_a_cache_takes(name, tiny):
    source = name if name == "embedded" else tiny(name).folder
    vlm = load_vlm(source)
    need = plan_memory(source, positions=100)
    assert need.positions == 100
    assert need.keys_values == vlm.new_cache(100).nbytes
    width = vlm.embed_ids(torch.tensor([1])).shape[-1]
    assert need.features == 100 * width * 4
    assert plan_memory(source, positions=10**9).positions == min(4096, vlm.max_positions)


def test_weights_that_do_not_fit_are_refused_with_the_numbers(monkeypatch, tiny):
    monkeypatch.setattr(memory_module, "measure_free_ram", lambda: 100_000)
    for source in ("embedded", tiny("llava").folder):
        size = format_bytes(plan_memory(source).weights)
        with pytest.raises(InputError, match=rf"The weights take {size} in float32 and 0\.1 MB are free on cpu"):
            load_vlm(source)
    monkeypatch.setattr(memory_module, "measure_free_ram", lambda: None)  # not known: not guessed
    assert "Free on cpu before loading: unknown" in str(plan_memory("embedded"))
    load_vlm("embedded")


def test_free_memory_is_what_the_container_leaves(tmp_path):
    assert measure_free_ram(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    assert measure_free_ram(tmp_path) == 8000 << 10
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("2000000\n")
    (group / "memory.stat").write_text("anon 1\ninactive_file 500000\n")
    assert measure_free_ram(tmp_path) == 8000 << 10
    (group / "memory.max").write_text("3000000\n")
    assert measure_free_ram(tmp_path) == 1_500_000


@pytest.mark.parametrize("header", [b"", b"\xff" * 8, b"\x05\0\0\0\0\0\0\0[1,2]", b"\x02\0\0\0\0\0\0\0{}"])
def test_a_damaged_header_is_left_to_loading(header, tmp_path, embedded):
    save_vlm(embedded, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(header)
    assert plan_memory(tmp_path).weights == 0
    with pytest.raises(InputError):
        load_vlm(tmp_path)


def test_verbose_tells_what_is_taken(capsys):
    assert main(["inspect", "--ask", "Hello?", "--max-new-tokens", "1", "--verbose"]) == 0
    told = capsys.readouterr()
    assert "Computed: weights 10.9 MB in float32, keys and values of 4,096 tokens" in told.err
    json.loads(told.out)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_memory_that_runs_out_is_one_sentence_and_let_go(error, embedded, capsys):
    held = []

    def compute():
        tensor = torch.zeros(10)
        held.append(weakref.ref(tensor))
        raise error

    with pytest.raises(InputError, match="memory didn't suffice") as told, refuse_shortage():
        compute()
    assert held[0]() is None
    assert told.value.__suppress_context__
    assert (FEATURES.counts().parts, ROWS.counts().rows) == (0, 0)


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shape"), refuse_shortage():
        raise RuntimeError("shape")


def test_a_command_that_runs_out_of_memory_ends_with_its_sentence(monkeypatch, capsys):
    vlm = load_vlm("embedded")
    left = [9]

    def run_out() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    vlm.watch(run_out)
    monkeypatch.setattr("inspector.__main__.load_vlm", lambda *_, **__: vlm)
    assert main(["inspect", "--ask", "Hello?"]) == 2
    assert capsys.readouterr().err.startswith("The memory didn't suffice for this, and it was stopped; ")
    assert main(["inspect", "--ask", "Hello?"]) == 0  # the next one goes on


def test_a_study_that_runs_out_of_memory_ends_and_the_session_goes_on():
    vlm, left = load_vlm("embedded"), [0]

    def run_out() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    vlm.watch(run_out)
    inspection = ask_and_inspect(vlm, example_prompt("two"), GenerationSettings())
    left[0] = 40  # blocks: in the middle
    steps = []
    with pytest.raises(InputError, match="memory didn't suffice"):
        steps += (found.step for found in study_answer(vlm, inspection))
    assert steps == ["structure"]
    *_, found = study_answer(vlm, inspection)
    assert all(check.ok for check in found.checks)


# --- several models on one server ---


@pytest.fixture
def three(tmp_path, embedded):
    for name in "ab":
        save_vlm(embedded, tmp_path / name)
    return {"embedded": "embedded", "a": str(tmp_path / "a"), "b": str(tmp_path / "b")}


def test_the_least_used_model_makes_way_and_that_is_said(three, caplog):
    store, told = ModelStore(three), []
    store.tell = told.append
    first = store.get("embedded")
    store.model_bytes = 2 * plan_memory("embedded").weights
    other = store.get("a")
    store.get("embedded")
    store.get("b")
    assert told == ["“a” (10.9 MB) was unloaded to make room for “b”; it is loaded again when it is asked."]
    assert told[0] in caplog.text
    assert store.get("embedded") is first
    again = store.get("a")  # “b” was used before “embedded”
    assert again is not other
    assert again.fingerprint == other.fingerprint
    assert len(told) == 2


def test_free_memory_makes_a_model_go_only_if_that_helps(three, monkeypatch):
    store, told, size = ModelStore(three), [], plan_memory("embedded").weights
    store.tell = told.append
    first = store.get("embedded")
    monkeypatch.setattr(memory_module, "measure_free_ram", lambda: 10)
    with pytest.raises(InputError, match="are free on cpu"):
        store.get("a")
    assert not told
    assert store.get("embedded") is first
    free = size - 10
    monkeypatch.setattr(memory_module, "measure_free_ram", lambda: free + size * len(told))
    store.get("a")
    assert len(told) == 1
    assert told[0].startswith("“embedded” ")


def test_two_people_on_two_models_at_once_keep_both(three):
    store = ModelStore(three)
    store.model_bytes = plan_memory("embedded").weights
    one = store.get("a")
    two = store.get("b")
    for vlm in (one, two):
        assert vlm.logits(torch.zeros(1, vlm.config.lm_hidden_dim)).shape[0] == 1
    assert store.memory_of("a").weights == store.memory_of("b").weights


def test_a_name_chooses_no_device(three):
    store = ModelStore(three)
    for name in ("cuda", "embedded:cuda", "embedded --device cuda"):
        with pytest.raises(InputError, match="There is no model"):
            store.get(name)
