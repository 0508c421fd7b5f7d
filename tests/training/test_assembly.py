"""Models put together from parts: what comes out computes what the parts compute, trains, and goes on."""

import json
import shutil
import tomllib

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from model import Conversation, InputError, Message, load_vlm, open_image, save_vlm
from model.config import BEYOND, CHAT_TEMPLATE
from model.training.assembly import assemble, plan_parts, size_parts
from model.training.parts import Parts
from model.training.recipe import ASSEMBLED, read_recipe
from model.training.trainer import Trainer
from tests.model.test_backbones import TEXT, VISION, save, stir

TURN_CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% if m['role'] == 'assistant' %}"
    "{{ eos_token }}{% endif %}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)


def write_tokenizer(folder, special, eos, chat=None):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([], trainer)
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, bos_token=special[0])
    made.chat_template = chat
    made.save_pretrained(folder)
    return len(made)


@pytest.fixture
def part_folders(tmp_path):
    """A SigLIP and a Llama with ChatML's tokens, as transformers writes them."""
    (tmp_path / "siglip").mkdir()
    (tmp_path / "llama").mkdir()
    config = transformers.SiglipVisionConfig(**VISION, intermediate_size=80)
    save(stir(transformers.SiglipVisionModel(config)), tmp_path / "siglip")
    size = write_tokenizer(tmp_path / "llama", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|im_end|>")
    llama = transformers.LlamaConfig(**{**TEXT, "vocab_size": size}, tie_word_embeddings=True)
    save(stir(transformers.LlamaForCausalLM(llama)), tmp_path / "llama")
    return tmp_path


def parts_of(folder, **more):
    return Parts(str(folder / "siglip"), str(folder / "llama"), **more)


def test_the_parts_compute_what_they_did_and_new_tokens_have_small_rows(part_folders):
    vlm = assemble(parts_of(part_folders, normalise=False), 3)
    theirs = transformers.LlamaForCausalLM.from_pretrained(part_folders / "llama").eval()
    encoder = transformers.SiglipVisionModel.from_pretrained(part_folders / "siglip").eval()
    sample = vlm.prepare(Conversation((Message("user", "What is it?"), Message("assistant", "red"))))
    batch = vlm.collate([sample])
    with torch.no_grad():
        logits = theirs(batch.input_ids).logits
        torch.testing.assert_close(vlm(batch)[..., : logits.shape[-1]], logits, atol=5e-5, rtol=1e-5)
        tiles = torch.rand(2, 3, 56, 56)
        torch.testing.assert_close(vlm.vision_encoder(tiles), encoder(tiles).last_hidden_state, atol=1e-5, rtol=1e-5)
    new = vlm.decoder.token_embedding.weight[logits.shape[-1] :]
    assert new.shape[0] == 66
    assert new.std().item() == pytest.approx(0.02, rel=0.1)
    assert vlm.config.lm_chat_template == CHAT_TEMPLATE
    assert vlm.config.beyond == ()
    assert vlm.config.tokens_per_tile == 16
    assert assemble(parts_of(part_folders, normalise=False), 3).fingerprint == vlm.fingerprint
    assert assemble(parts_of(part_folders, normalise=False), 4).fingerprint != vlm.fingerprint


def test_a_model_that_only_nanovlm_writes_is_nanovlms_and_another_says_what_it_has_beyond(part_folders, tmp_path):
    plain = assemble(parts_of(part_folders), 0)
    save_vlm(plain, tmp_path / "plain")
    assert not BEYOND.keys() & json.loads((tmp_path / "plain" / "config.json").read_text()).keys()
    config = transformers.CLIPVisionConfig(**VISION, intermediate_size=80)
    (tmp_path / "clip").mkdir()
    save(stir(transformers.CLIPVisionModel(config)), tmp_path / "clip")
    other = assemble(Parts(str(tmp_path / "clip"), str(tmp_path / "llama"), projector="mlp", pixel_shuffle=2), 0)
    save_vlm(other, tmp_path / "other")
    again = load_vlm(tmp_path / "other")
    assert again.fingerprint == other.fingerprint
    assert again.config.beyond == (
        "vit_class_token = True",
        "vit_pre_norm = True",
        "vit_post_norm = False",
        "vit_activation = quick_gelu",
        "mp_kind = mlp",
    )
    assert "vit_pre_norm" in " ".join(again.notes)
    assert plain.notes == ()
    assert set(load_file(tmp_path / "other" / "model.safetensors")) >= {"MP.out.weight", "MP.out.bias", "MP.proj.bias"}


def test_other_chat_forms(part_folders, tmp_path):
    """A template of the language model's own where it can be used; ChatML's tokens are added where there is none."""
    conversation = Conversation((Message("user", "Q"), Message("assistant", "A")))
    for chat, expected in (
        (TURN_CHAT, "<s>[user] Q[assistant] A</s>"),
        (None, "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"),
        ("{{ raise_exception('no') }}", "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"),
    ):
        folder = tmp_path / "llama"
        write_tokenizer(folder, ["<s>", "</s>"], "</s>", chat)
        for file in ("chat_template.jinja",) if chat is None else ():
            (folder / file).unlink(missing_ok=True)
        vlm = assemble(parts_of(part_folders), 0)
        sample = vlm.prepare(conversation)
        assert vlm.tokenizer.decode(sample.input_ids) == expected
        trained = sample.input_ids[sample.loss_mask.bool()]
        assert vlm.tokenizer.decode(trained).startswith("A")
        assert vlm.eos_token_id in trained.tolist()


RECIPE = """
title = "from parts"
[base]
vision = "siglip"
language = "llama"
projector = "mlp"
[[stages]]
name = "alignment"
kind = "alignment"
steps = 3
batch_rows = 2
learning_rates = {{ MP = 1e-2 }}
eval_every = 0
eval_examples = 2
[[stages.data]]
source = "scenes"
set = "single"
count = 20
{more}
"""


def test_a_recipe_from_parts_trains_the_projector_alone_and_its_run_goes_on(part_folders, tmp_path):
    path = part_folders / "recipe.toml"
    path.write_text(RECIPE.format(more=""))
    recipe = read_recipe(path)
    assert recipe.base == ASSEMBLED
    trainer = Trainer(recipe, tmp_path / "run")
    before = {name: tensor.clone() for name, tensor in trainer.vlm.state_dict().items()}
    assert list(trainer.run())[-1].to_json()["event"] == "done"
    after = load_vlm(tmp_path / "run" / "model").state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {"MP.proj.weight", "MP.proj.bias", "MP.out.weight", "MP.out.bias"}
    # The recipe as run finds its parts from anywhere, and says all of them.
    written = tomllib.loads((tmp_path / "run" / "recipe.toml").read_text())["base"]
    assert written["vision"] == str(part_folders / "siglip")
    again = read_recipe(tmp_path / "run" / "recipe.toml")
    assert assemble(again.parts, again.seed).fingerprint == assemble(recipe.parts, 0, part_folders).fingerprint
    Trainer(again, tmp_path / "run", resume=True)


@pytest.mark.parametrize("name", ["llava", "nanovlm"])
def test_shipped_recipes_are_read_and_their_parts_can_be_changed(part_folders, name):
    vision, language = (f"{part_folders}/{part}" for part in ("siglip", "llama"))
    recipe = read_recipe(name, [f"base.vision={vision}", f"base.language={language}", "base.pixel_shuffle=2"])
    assert (recipe.parts.vision, recipe.parts.language, recipe.parts.pixel_shuffle) == (vision, language, 2)
    assert all("vision_encoder" not in stage.learning_rates for stage in recipe.stages) == (name == "llava")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"projector": "cubic"}, "projector is 'cubic'; it must be one of linear, mlp"),
        ({"pixel_shuffle": 3}, "4 × 4 patches, which base.pixel_shuffle 3 doesn't divide; use one of 1, 2, 4"),
        ({"max_img_size": 100}, "must be a multiple"),
        ({"vision": ""}, "it must be a folder or a hub id"),
        ({"tile_px": -1}, "must be a positive integer"),
        ({"normalise": 1}, "must be true or false"),
        ({"language": "siglip"}, "isn't read as the language model"),
        ({"vision": "llama"}, "isn't read as the image encoder"),
        ({"vision": "nowhere/at/all"}, "is no folder"),
    ],
)
def test_parts_that_do_not_fit_are_refused_in_a_sentence(part_folders, change, sentence):
    with pytest.raises(InputError, match=sentence):
        assemble(Parts(**{"vision": "siglip", "language": "llama", **change}), 0, part_folders)


def test_a_text_model_with_image_tokens_of_its_own_is_refused(part_folders):
    write_tokenizer(part_folders / "llama", ["<s>", "</s>", "<|image|>"], "</s>")
    with pytest.raises(InputError, match="has the token <|image|> already".replace("|", r"\|")):
        assemble(parts_of(part_folders), 0)


@pytest.mark.parametrize(
    ("base", "sentence"),
    [
        ('[base]\nvision = "a/b"', "lacks language"),
        ('[base]\nvision = "a/b"\nlanguage = "c/d"\nsize = 3', "unknown key size"),
        ('base = "parts"', r"is a \[base\] table"),
    ],
)
def test_a_base_that_is_no_base_is_named(tmp_path, base, sentence):
    text = RECIPE.format(more="")
    stages = text[text.index("[[stages]]") :]
    (tmp_path / "recipe.toml").write_text(f"{base}\n{stages}")
    with pytest.raises(InputError, match=sentence):
        read_recipe(tmp_path / "recipe.toml")


def test_an_assembled_model_is_asked_with_a_picture(part_folders, tmp_path):
    Image.new("RGB", (80, 50), "red").save(tmp_path / "a.png")
    vlm = assemble(parts_of(part_folders, max_img_size=112), 0)
    sample = vlm.prepare(Conversation((Message("user", "What?", (open_image(tmp_path / "a.png"),)),)), True)
    assert len(sample.images[0].boxes) == 5
    assert len(list(vlm.generate(sample, max_new_tokens=3))) <= 3


def test_the_parts_of_a_whole_model_are_its_own_and_only_the_projector_is_new(embedded):
    made, known = assemble(Parts("embedded", "embedded"), 5).state_dict(), embedded.state_dict()
    assert {name for name in known if not torch.equal(made[name], known[name])} == {"MP.proj.weight"}
    assert made.keys() == known.keys()


@pytest.mark.parametrize("projector", ["linear", "mlp"])
@pytest.mark.parametrize(("vision", "language"), [("siglip", "llama"), ("embedded", "llama"), ("siglip", "embedded")])
def test_what_is_planned_from_the_small_files_is_what_is_put_together(part_folders, vision, language, projector):
    parts = Parts(vision, language, projector)
    planned, made = plan_parts(parts, part_folders), assemble(parts, 0, part_folders)
    assert planned.config == made.config
    assert {name: p.shape for name, p in planned.state_dict().items()} == {
        name: p.shape for name, p in made.state_dict().items()
    }
    assert all(p.is_meta for p in planned.parameters())
    assert all(bool(torch.isfinite(p).all()) for p in made.parameters())


@pytest.fixture
def hub_of_parts(hub, part_folders, monkeypatch):
    """The hub, which has both parts, and where this program asks for it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    hub.repos |= {"owner/siglip": part_folders / "siglip", "owner/llama": part_folders / "llama"}
    return hub


def test_parts_on_the_hub_are_sized_before_they_are_fetched(hub_of_parts, part_folders):
    parts = Parts("owner/siglip", "owner/llama")
    sized = size_parts(parts)
    assert set(hub_of_parts.sent) == {"config.json"}
    for (found, missing), name in zip(sized, ("siglip", "llama"), strict=True):
        files = {path.name: path.stat().st_size for path in (part_folders / name).iterdir()}
        assert found.nbytes == sum(files[file.name] for file in found.files)
        assert missing == found.nbytes - files["config.json"]
        count = sum(tensor.numel() for tensor in load_file(part_folders / name / "model.safetensors").values())
        assert count <= found.weights < 1.1 * count
    plan_parts(parts)
    assert "model.safetensors" not in hub_of_parts.sent, "a plan needs no weights"
    made = assemble(parts, 0)
    assert made.fingerprint == assemble(Parts("siglip", "llama"), 0, part_folders).fingerprint
    assert [missing for _, missing in size_parts(parts)] == [0, 0]
    assert size_parts(Parts("embedded", str(part_folders / "llama"))) == []


def test_parts_that_cannot_be_fetched_say_why(hub_of_parts, monkeypatch):
    parts = Parts("owner/siglip", "owner/llama")
    with pytest.raises(InputError, match=r"“owner/siglip” has .*; at most 0\.0 MB are fetched"):
        size_parts(parts, most=1000)
    sizes = [found.nbytes for found, _ in size_parts(parts)]
    # There is room for either, and not for both.
    usage = shutil.disk_usage("/")._replace(free=max(sizes) + 100)
    monkeypatch.setattr("model.hub.shutil.disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"“owner/llama” has .* to fetch and the disk has"):
        assemble(parts, 0)
    assert "model.safetensors" not in hub_of_parts.sent
    hub_of_parts.repos["owner/llama"] = 403
    with pytest.raises(InputError, match="“owner/llama” is gated; accept its terms"):
        assemble(parts, 0)
    hub_of_parts.repos["owner/llama"] = 404
    with pytest.raises(InputError, match="The hub has no model “owner/llama”"):
        size_parts(parts)
