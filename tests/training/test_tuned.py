"""Models of other families under the trainer: what trains, what stays, and what transformers and peft make of it."""

import copy
import json
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from inspector.session import ModelStore
from model import Conversation, InputError, Message, load_vlm
from model.checkpoint import load_shape, save_shape
from model.collator import IGNORE_LABEL, shift_labels
from model.packing import pack_samples
from model.training.__main__ import main
from model.training.assembly import open_base
from model.training.batches import FeatureCache, with_features
from model.training.events import DoneEvent, StartEvent, StepEvent
from model.training.recipe import build_recipe
from model.training.trainer import Trainer
from model.training.tuned import TunedVLM, check_tuning, count_trained
from tests.tiny_checkpoints import BUILDERS, causal, embeds_of, noise

TWO = ("smolvlm", "qwen2.5 vl")
FAMILIES = [name for name in BUILDERS if name not in TWO]
SCENES = {"source": "scenes", "set": "single", "count": 40, "turns": 2, "pictures": 8}
TUNE = {
    "name": "tune",
    "kind": "instruction",
    "steps": 4,
    "batch_rows": 2,
    "lora_rank": 4,
    "learning_rates": {"MP": 1e-3, "decoder": 1e-2},
    "data": [SCENES],
    "eval_every": 0,
    "eval_examples": 2,
    "save_every_s": 1e9,
}


@pytest.fixture
def recipe_of(tiny):
    """`recipe_of(name, stage, …)`: stages of a tiny checkpoint, each a dict of what differs from TUNE."""

    def make(name, *stages, **values):
        tables = [{**TUNE, "name": f"part {n}", **stage} for n, stage in enumerate(stages or ({},))]
        folder = tiny(name).folder
        return build_recipe({"base": str(folder), "precision": "fp32", "stages": tables, **values}, folder)

    return make


def train(recipe, folder, **options):
    trainer = Trainer(recipe, folder, **options)
    return trainer, list(trainer.run())


def losses(events):
    return [event.loss for event in events if isinstance(event, StepEvent)]


def steps(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(line["stage"], line["step"], line["loss"]) for line in lines if line["event"] == "step"]


def with_peft(tiny_model, folder):
    """What transformers and peft make of an adapter, and nothing of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
        return PeftModel.from_pretrained(copy.deepcopy(tiny_model), folder).eval()


@torch.no_grad()
def logits_of(vlm, row):
    return vlm.logits(vlm.decode(embeds_of(vlm, row)[None], row.position_ids, causal(row)))


def example(images, answer="It is red."):
    pictures = tuple(noise(*size, seed) for seed, size in enumerate(images))
    return Conversation((Message("user", "What colour is it?", pictures), Message("assistant", answer)))


@pytest.mark.parametrize("name", TWO)
def test_an_adapter_gives_the_same_logits_in_transformers_and_peft(name, tiny, recipe_of, tmp_path):
    made = tiny(name)
    before = {key: value.clone() for key, value in made.model.state_dict().items()}
    trainer, events = train(recipe_of(name, {"steps": 12}), tmp_path / "run")
    curve = losses(events)
    assert sum(curve[-3:]) < sum(curve[:3]) - 0.3
    folder = tmp_path / "run" / "model"
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(made.folder)
    images = [noise(90, 60), noise(60, 90, 1)]
    inputs, row = made.inputs(images), made.row(images)
    with torch.no_grad():
        theirs = with_peft(made.model, folder)(**inputs).logits
        assert (theirs - made.model(**inputs).logits).abs().max() > 1e-2  # or nothing was learnt
    after = load_vlm(folder)
    for ours in (trainer.vlm.opened, after):
        torch.testing.assert_close(logits_of(ours, row), theirs, rtol=0, atol=1e-5)
    # On a base that is open already it is put without reading that again, and leaves it as it was.
    store = ModelStore({"base": str(made.folder), "adapter": str(folder)}, device="cpu", dtype="float32")
    base, shared = store.get("base"), store.get("adapter")
    torch.testing.assert_close(logits_of(shared, row), theirs, rtol=0, atol=1e-5)
    assert (shared.fingerprint, base.fingerprint) == (after.fingerprint, made.vlm.fingerprint)
    same = {
        key for key, value in shared.weights.named_parameters() if value is dict(base.weights.named_parameters())[key]
    }
    assert same == {key for key, value in after.model.named_parameters() if torch.equal(value, before[key])}
    again = load_vlm(folder, dtype=torch.float32, opened=(shared,))  # an adapter of the same base is no base
    assert again.fingerprint == after.fingerprint
    assert isinstance(events[-1], DoneEvent)
    assert events[-1].fingerprint == after.fingerprint != trainer.vlm.base_fingerprint
    assert trainer.folder.read_run()["base_fingerprint"] == trainer.vlm.base_fingerprint == made.vlm.fingerprint
    # Encoder and language model are the base's to the last bit; the projector is not.
    trained = set(trainer.vlm.opened.projectors)
    for key, value in trainer.vlm.opened.model.state_dict().items():
        if "lora_" not in key:
            plain = key.replace(".base_layer.", ".")
            changed = not torch.equal(value, before[plain])
            assert changed == any(plain.startswith(f"{path}.") for path in trained), plain


@pytest.mark.parametrize("name", TWO)
def test_a_run_that_was_stopped_goes_on_with_the_same_losses(name, recipe_of, tmp_path):
    alignment = {"kind": "alignment", "learning_rates": {"MP": 1e-3}, "lora_rank": 0}
    recipe = recipe_of(name, {"learning_rates": {"decoder": 1e-2}}, alignment)
    whole, _ = train(recipe, tmp_path / "whole")
    # Once inside the first stage and once inside the second, whose state must hold what the first one taught.
    folder, options = tmp_path / "broken", {}
    for stop_at in (2, 6):
        trainer = Trainer(recipe, folder, **options)
        for event in trainer.run():
            if isinstance(event, StepEvent) and event.step + 4 * (event.stage == "part 1") == stop_at:
                trainer.stop()
        options = {"resume": True}
    resumed, _ = train(recipe, folder, resume=True)
    assert steps(folder) == steps(tmp_path / "whole")
    assert resumed.vlm.fingerprint == whole.vlm.fingerprint


@pytest.mark.parametrize("name", FAMILIES)
def test_one_step_of_every_family(name, tiny, recipe_of, tmp_path):
    trainer, events = train(recipe_of(name, {"steps": 1}), tmp_path / "run")
    start = next(event for event in events if isinstance(event, StartEvent))
    sizes = {size.module: (size.parameters, size.trainable) for size in start.trainable}
    assert sizes["vision_encoder"][1] == 0
    assert sizes["MP"][0] == sizes["MP"][1] > 0
    assert 0 < sizes["decoder"][1] < sizes["decoder"][0]
    counted = tiny(name).vlm.count_parts()
    newline = getattr(tiny(name).model.model, "image_newline", torch.zeros(0)).numel()
    assert sizes["MP"][0] == counted["projector"] - newline
    assert start.trainable == count_trained(tiny(name).vlm, trainer.recipe.stages[0])  # told before it begins
    images = [noise(90, 60)]
    with torch.no_grad():
        theirs = with_peft(tiny(name).model, tmp_path / "run" / "model")(**tiny(name).inputs(images)).logits
    ours = logits_of(load_vlm(tmp_path / "run" / "model"), tiny(name).row(images))
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", list(BUILDERS))
def test_the_loss_is_transformers_own(name, tiny):
    made = tiny(name)
    tuned = TunedVLM(load_vlm(made.folder), "base", rank=0)
    images = [noise(90, 60), noise(60, 120, 1)]
    inputs = made.inputs(images)
    row = made.row(images)
    sample = replace(row, loss_mask=row.input_ids != made.vlm.image_token_id)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == made.vlm.image_token_id, -100)
    with torch.no_grad():
        theirs = made.model(**inputs, labels=labels).loss
        assert float(tuned.loss(tuned.collate([sample]))) == pytest.approx(float(theirs), abs=1e-5)


@pytest.mark.parametrize("name", ["smolvlm", "qwen2.5 vl", "qwen3 vl", "gemma3 wide", "onevision"])
def test_a_row_means_the_same_beside_and_behind_others(name, tiny):
    tuned = TunedVLM(load_vlm(tiny(name).folder), "base", rank=0)
    samples = [tuned.prepare(example([(90, 60)])), tuned.prepare(example([(60, 90)], "It is a rather long answer."))]
    with torch.no_grad():
        alone = [(float(tuned.loss(tuned.collate([one]))), int(one.loss_mask.sum())) for one in samples]
        mean = sum(loss * count for loss, count in alone) / sum(count for _, count in alone)
        padded = float(tuned.loss(tuned.collate(samples)))
        packed = pack_samples(samples, tuned.pad_token_id)
        apart = float(tuned.loss(tuned.collate([packed], document_mask=True)))
        together = float(tuned.loss(tuned.collate([packed])))
    assert padded == pytest.approx(mean, abs=1e-5)
    assert apart == pytest.approx(mean, abs=1e-5)
    assert abs(together - mean) > 1e-5


class Squares(TorchDispatchMode):
    """The results of every operation that have as many rows as columns, ``length`` or more; no weights, turned."""

    def __init__(self, length):
        super().__init__()
        self.length, self.found = length, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple) else (out,):
            if isinstance(one, torch.Tensor) and one.ndim > 2 and one.shape[-1] == one.shape[-2] >= self.length:
                self.found.append(str(func))
        return out


@pytest.mark.parametrize("name", list(BUILDERS))
def test_rows_are_trained_on_without_a_mask_where_nothing_needs_one(name, tiny):
    """Images of Gemma 3 see one another both ways, and some layers look back less far than a row reaches."""
    tuned = TunedVLM(load_vlm(tiny(name).folder), "base", rank=2)
    samples = [tuned.prepare(example([(90, 60)])), tuned.prepare(example([(60, 90)], "It is long. " * 20))]
    packed = pack_samples(samples, tuned.pad_token_id)
    batch = tuned.collate([packed, samples[0]], document_mask=True)
    features = with_features(batch, FeatureCache(tuned))
    with Squares(len(samples[1])) as squares:
        loss = tuned.loss(features)
        loss.backward()
    window = tuned.opened.text.window
    needed = name.startswith("gemma3") or (window is not None and window < len(samples[1]))
    assert bool(squares.found) == needed
    with torch.no_grad():
        targets = shift_labels(batch.labels)
        trained = targets != IGNORE_LABEL
        masked = F.cross_entropy(tuned.opened.text.head(tuned.hidden(features)[trained]), targets[trained])
    assert loss.item() == pytest.approx(float(masked), abs=1e-5)


@pytest.mark.parametrize("name", ["smolvlm", "qwen3 vl"])
def test_features_of_the_cache_are_those_that_are_computed(name, tiny):
    tuned = TunedVLM(load_vlm(tiny(name).folder), "base", rank=2)
    cache = FeatureCache(tuned)
    batch = tuned.collate([tuned.prepare(example([(90, 60), (60, 90)])), tuned.prepare(example([(90, 60)]))])
    kept = with_features(batch, cache)
    again = with_features(batch, cache)
    assert all(one is two for one, two in zip(kept.patches, again.patches, strict=True))
    assert kept.patches[0] is kept.patches[2]  # the same image in another row
    assert torch.equal(tuned.loss(batch), tuned.loss(kept))


def test_blocks_that_are_computed_again_give_the_same_steps(recipe_of, tmp_path):
    plain, _ = train(recipe_of("qwen3 vl", {"steps": 2}), tmp_path / "plain")
    again, _ = train(recipe_of("qwen3 vl", {"steps": 2, "checkpointing": True}), tmp_path / "again")
    assert steps(tmp_path / "again") == steps(tmp_path / "plain")
    assert again.vlm.fingerprint == plain.vlm.fingerprint
    passes = []
    again.vlm.opened.text.layers[0].self_attn.register_forward_pre_hook(lambda *_: passes.append(1))
    for training, expected in ((True, 2), (False, 1)):
        again.vlm.train(training).loss(again.vlm.collate([again.vlm.prepare(example([(90, 60)]))])).backward()
        assert len(passes) == expected
        passes.clear()


@pytest.mark.parametrize(
    ("stages", "sentence"),
    [
        (({"kind": "contrastive", "lora_rank": 0, "learning_rates": {"text": 1e-3}},), "keeps its image encoder"),
        (({"learning_rates": {"vision_encoder": 1e-3}, "lora_rank": 0},), "keeps its image encoder"),
        (({"learning_rates": {"decoder": 1e-3}, "lora_rank": 0},), "set lora_rank"),
        (({"lora_rank": 2}, {"lora_rank": 3}), "one adapter"),
        (({"lora_targets": ["q_proj", "spoon"]},), "names spoon; the language model has down_proj, gate_proj"),
    ],
)
def test_what_is_not_trained_is_said_before_anything_is(stages, sentence, recipe_of, tmp_path):
    with pytest.raises(InputError, match=sentence):
        Trainer(recipe_of("smolvlm", *stages), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_its_own_adapters_alone(recipe_of, tmp_path):
    train(recipe_of("smolvlm", {"steps": 1}), tmp_path / "run")
    for rank in (2, 0):
        rates = {"MP": 1e-3, **({"decoder": 1e-2} if rank else {})}
        changed = recipe_of("smolvlm", {"steps": 2, "lora_rank": rank, "learning_rates": rates})
        with pytest.raises(InputError, match="lora_rank of the run"):
            train(changed, tmp_path / "run", resume=True)


def test_targets_are_those_of_the_language_model_alone(recipe_of):
    tuned = open_base(recipe_of("llava", {"lora_targets": ["q_proj", "v_proj"], "learning_rates": {"decoder": 1e-3}}))
    adapted = {key.split(".lora_")[0] for key in tuned.changes()}
    assert adapted == {
        f"base_model.model.model.language_model.layers.{layer}.self_attn.{one}"
        for layer in range(3)
        for one in ("q_proj", "v_proj")
    }


def test_an_angle_that_depends_on_the_row_s_length_forbids_packing(tiny, recipe_of):
    made = copy.copy(load_vlm(tiny("smolvlm").folder))
    made.text.model.rotary_emb.rope_type = "dynamic"
    assert not made.text.shifts
    recipe = recipe_of("smolvlm", {"packing": "document", "row_tokens": 600})
    with pytest.raises(InputError, match="set packing to “off”"):
        check_tuning(made, recipe)


def test_an_adapter_of_other_weights_is_refused(tiny, recipe_of, tmp_path):
    train(recipe_of("smolvlm", {"steps": 1}), tmp_path / "run")
    folder = tmp_path / "run" / "model"
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    values, tensors = json.loads(config.read_text()), load_file(weights)

    def refuses(sentence, **changed):
        config.write_text(json.dumps({**values, **changed}))
        with pytest.raises(InputError, match=sentence):
            load_vlm(folder)
        config.write_text(json.dumps(values))

    refuses("other weights", base_model_name_or_path=str(tiny("idefics3").folder))
    refuses("can't be opened", base_model_name_or_path=str(tmp_path / "nowhere"))
    refuses("names no base", base_model_name_or_path=None)
    refuses("no checkpoint of transformers", base_model_name_or_path="embedded")
    refuses("LORA with use_dora", use_dora=True)
    refuses("'LOHA'", peft_type="LOHA")
    refuses("r must be", r=0)
    key = next(iter(tensors))
    save_file({**tensors, "base_model.model.nothing.weight": torch.zeros(2)}, weights)
    refuses("changes nothing.weight, which")
    save_file({**tensors, key: torch.full_like(tensors[key], torch.nan)}, weights)
    refuses("not finite")
    save_file({**tensors, key: torch.zeros(3, 3)}, weights)
    refuses("shape|doesn't have")
    weights.write_bytes(weights.read_bytes()[:-8])
    refuses("can't be read")


@pytest.mark.parametrize("name", ["smolvlm", "qwen3 vl", "llava", "onevision"])
def test_a_shape_without_weights_renders_the_same_rows(name, tiny, tmp_path):
    save_shape(tiny(name).vlm, tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))
    shape = load_shape(tmp_path)
    assert all(weight.is_meta for weight in shape.model.parameters())
    for images in ([(90, 60)], [(60, 90), (300, 200)], []):
        one, two = shape.prepare(example(images)), tiny(name).vlm.prepare(example(images))
        assert torch.equal(one.input_ids, two.input_ids)
        assert torch.equal(one.loss_mask, two.loss_mask)


def test_the_commands_take_other_families(recipe_of, tmp_path, capsys):
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_of("smolvlm", {"steps": 1}).to_toml())
    assert main(["check", str(path), "--sample", "5"]) == 0
    (report,) = json.loads(capsys.readouterr().out)["part 0"]
    assert report["usable"] == 5
    assert report["trained_tokens"] > 0
    assert main(["run", str(path), "--out", str(tmp_path / "run"), "--quiet"]) == 0
    again = recipe_of("smolvlm", base=str(tmp_path / "run" / "model"))
    path.write_text(again.to_toml())
    assert main(["run", str(path), "--out", str(tmp_path / "next")]) == 2
    assert "an adapter to an adapter" in capsys.readouterr().err
