"""From a form to a recipe: whatever a program sends is one sentence that names the field, and no file of the server."""

import math

import pytest

from inspector.bounds import private_bounds, public_bounds
from inspector.runs.metrics import check_base
from inspector.runs.presets import FIRST_STAGE, HUB, PRESETS, UPLOAD, fit_preset, list_data, read_form, write_recipe
from model import InputError
from model.ranges import MAX_SEED

VALUES = {"seed": 0, "base": "embedded", "path": "", "source": "auto", **PRESETS["instruction tuning"].values}
NAMES = {
    "steps": "Steps",
    "lora_rank": "LoRA rank",
    "batch_rows": "Rows per batch",
    "eval_every": "Evaluate every",
    "seed": "Seed",
    "vision_rate": "The encoder's learning rate",
    "projector_rate": "The projector's learning rate",
    "decoder_rate": "The language model's learning rate",
    "text_rate": "The text tower's learning rate",
}
WORDS = {
    "kind": "Stage",
    "base": "Base model",
    "data": "Data",
    "path": "Data set on the hub",
    "source": "Format",
    "packing": "Packing",
}


def write(bounds=None, **changes):
    return write_recipe(read_form(**{**VALUES, **changes}), "embedded", "a run", bounds or private_bounds())


@pytest.mark.parametrize("value", [None, "", math.nan, math.inf, -math.inf, float("1e400"), "5", "many", [1], {}, True])
@pytest.mark.parametrize("key", NAMES)
def test_what_is_no_number_is_named(key, value):
    with pytest.raises(InputError, match=f"^{NAMES[key]}.*number"):
        write(**{key: value})


@pytest.mark.parametrize("value", [10**400, 1e300, -1], ids=["huge", "large", "below"])
@pytest.mark.parametrize("key", NAMES)
def test_a_number_beyond_every_range_is_named(key, value):
    with pytest.raises(InputError, match=f"^{NAMES[key]}.*number") as caught:
        write(**{key: value})
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("value", [5, ["x"], {"a": 1}, math.nan, True, "x" * 5000])
@pytest.mark.parametrize("key", WORDS)
def test_what_is_no_text_is_named(key, value):
    with pytest.raises(InputError, match=rf"^{WORDS[key]}.*1000"):
        write(**{key: value})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"batch_rows": 65}, "Rows per batch.*65.*64"),
        ({"lora_rank": 65}, "LoRA rank.*65.*64"),
        ({"seed": MAX_SEED + 1}, "Seed.*9007199254740992"),
        ({"data": "a hub data set", "path": "owner/name"}, "the hub"),
    ],
)
def test_a_public_server_gives_less(change, sentence):
    with pytest.raises(InputError, match=sentence):
        write(public_bounds(), **change)


def test_a_form_asks_for_what_the_server_can_hold():
    public, private = write(public_bounds()), write()
    assert (public.stages[0].batch_tokens, public.cache_mib) == (16_384, 512)
    assert (private.stages[0].batch_tokens, private.cache_mib) == (65_536, 4096)
    assert write(seed=MAX_SEED).stages[0].data[0]["seed"] == 20


def test_hub_data_are_offered_where_they_are_given():
    assert HUB not in list_data(public_bounds())
    assert {UPLOAD, HUB} <= set(list_data(private_bounds()))


@pytest.mark.parametrize("source", ["llava", "chat", "captions", "scenes", "word", "/etc", "easy-vqa"])
def test_data_of_the_hub_are_read_by_no_reader_of_files(source):
    with pytest.raises(InputError, match=r"rows|format"):
        write(data=HUB, path="owner/name", source=source)


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../../etc",
        "~/.ssh",
        "owner/name/../../x",
        "owner/..",
        "./owner",
        "model/embedded",
        "owner\\name",
        "owner/name\0",
        "file:///etc/passwd",
        "http://x/y",
        ".hidden/x",
        "owner/.x",
        "owner",
        "a/b/c",
        "owner/na me",
    ],
)
def test_data_of_the_hub_are_a_name_there_and_no_path_here(path):
    with pytest.raises(InputError, match="the hub"):
        write(data=HUB, path=path)


def test_data_of_the_hub_are_asked_for_without_a_token():
    assert dict(write(data=HUB, path="owner/name:part", source="auto").stages[0].data[0]) == {
        "source": "rows",
        "path": "owner/name",
        "limit": 2000,
        "on_error": "skip",
        "streaming": True,
        "subset": "part",
    }


@pytest.mark.parametrize("data", ["scenes", "word", "rows", "/etc/passwd", "captions", ""])
def test_there_are_no_other_data(data):
    with pytest.raises(InputError, match=f"“{data}”"):
        write(data=data, path="/etc/passwd")


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "custom"])
def test_a_preset_can_be_trained_whatever_the_base(name, tiny):
    assert fit_preset(name, "nanoVLM") == fit_preset(name, "") == dict(PRESETS[name].values)
    values = fit_preset(name, "smolvlm")
    # The projector of another family goes on from where it is.
    assert PRESETS[name].values.keys() - values.keys() == ({"base"} if name == FIRST_STAGE else set())
    if "base" not in values:  # the others have a base of their own
        check_base(tiny("smolvlm").vlm, write(**values))


def test_a_form_that_another_family_can_not_do_is_refused(tiny):
    assert fit_preset("instruction tuning", "llava")["lora_rank"] == 8
    with pytest.raises(InputError, match="set lora_rank"):
        check_base(tiny("smolvlm").vlm, write(**PRESETS["instruction tuning"].values))
    with pytest.raises(InputError, match="no such way"):
        fit_preset("nothing", "nanoVLM")
