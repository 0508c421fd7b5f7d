"""A row that was read once: whatever goes on from it equals the whole pass, and nothing is computed twice."""

from dataclasses import replace
from threading import Thread

import numpy as np
import pytest
import torch
from PIL import Image

from inspector.__main__ import main
from inspector.export.experiments import EXPERIMENTS
from inspector.interventions.prefix_cache import PrefixCache
from inspector.interventions.target import open_case
from inspector.row.ask import GenerationSettings, ask, ask_and_inspect, attend, inspect
from inspector.row.attention import read_attention, read_readers, summarise_pattern
from inspector.row.embedded_row import answer_row, grow_row, read_positions, read_row
from inspector.row.feature_store import FEATURES, FeatureStore
from inspector.row.prompt import Prompt, Turn, prepare_row
from inspector.row.row_store import ROWS, RowStore
from inspector.row.token_table import token_losses
from inspector.which_image.study import study_answer
from model import VLM, AttentionReader, Conversation, InputError, Message, OpenedImage, Tap, load_vlm
from model.generate import generate_batch
from model.language import LanguageModel
from model.training.synthetic.examples import EXAMPLES

SMOLLM2_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def prompt_of(name, **options):
    example = next(example for example in EXAMPLES if example.name == name)
    images = tuple(OpenedImage(image) for image in example.draw_images())
    return Prompt(images, tuple(Turn(text) for text in example.turns), example.layout, **options)


@pytest.fixture
def stores(monkeypatch):
    """Empty ones of this test alone: (features, rows)."""
    features = FeatureStore(1 << 30)
    rows = RowStore(features, 1 << 30)
    FEATURES.clear()
    ROWS.clear()
    yield features, rows
    FEATURES.clear()
    ROWS.clear()


@pytest.fixture(scope="module", params=["three", "per-turn", "packed", "packed, document mask"])
def prompt(request):
    name, _, mask = request.param.partition(", ")
    return prompt_of(name, **({"document_mask": True} if mask else {}))


def features_of(vlm, row):
    return FeatureStore(1 << 30).encode(vlm, row.images)


def test_a_row_read_here_is_what_the_model_itself_makes_of_it(embedded, prompt):
    row = prepare_row(embedded, prompt)
    read = read_row(embedded, row, features_of(embedded, row), document_mask=prompt.keeps_samples_apart)
    with torch.no_grad():
        hidden = embedded.hidden(embedded.collate([row], document_mask=prompt.keeps_samples_apart))[0]
    # A separator is seen by nobody, so what it holds itself means nothing.
    seen = row.attention_mask
    assert torch.allclose(read.hidden[seen], hidden[seen], atol=1e-5)


def test_a_row_grown_from_its_beginning_is_the_row(embedded, prompt):
    answered = prompt
    for turn in range(len(prompt.turns)):
        answered = answered.with_answer(turn, "red")
    row = prepare_row(embedded, answered)
    features = features_of(embedded, row)
    begun = prepare_row(embedded, prompt, answering=0)
    before = read_row(embedded, begun, features[: len(begun.images)], document_mask=prompt.keeps_samples_apart)
    kept = before.cache.keys.clone(), before.hidden.clone()
    grown = grow_row(embedded, before, row, features)
    whole = read_row(embedded, row, features, document_mask=prompt.keeps_samples_apart)
    assert torch.allclose(grown.hidden, whole.hidden, atol=1e-5)
    assert torch.equal(before.cache.keys, kept[0])
    assert torch.equal(before.hidden, kept[1])
    # Grown to less than it was: its beginning, and nothing computed.
    shorter = grow_row(embedded, whole, begun, features[: len(begun.images)])
    count = int((row.input_ids[: len(begun)] == begun.input_ids).long().cumprod(0).sum())
    assert torch.equal(shorter.hidden[:count], whole.hidden[:count])
    assert len(shorter) == len(shorter.hidden) == len(begun)


def test_another_image_in_the_middle_leaves_the_beginning_alone(embedded):
    prompt = prompt_of("three")
    other = replace(prompt, images=(*prompt.images[:2], OpenedImage(Image.new("RGB", (64, 64), "red"))))
    rows = [prepare_row(embedded, one, answering=0) for one in (prompt, other)]
    first, second = (features_of(embedded, row) for row in rows)
    before = read_row(embedded, rows[0], first)
    grown, whole = grow_row(embedded, before, rows[1], second), read_row(embedded, rows[1], second)
    start = rows[1].grids[-1].start
    assert torch.equal(grown.hidden[:start], before.hidden[:start])
    assert torch.allclose(grown.hidden, whole.hidden, atol=1e-5)
    assert not torch.allclose(grown.hidden[start:], before.hidden[start:], atol=1e-2)


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "seed": 3}])
def test_answers_are_those_of_a_batch_of_one(embedded, prompt, settings):
    row = prepare_row(embedded, prompt, answering=0)
    read = read_row(embedded, row, features_of(embedded, row), document_mask=prompt.keeps_samples_apart)
    ours = [step for step, _ in answer_row(embedded, read, max_new_tokens=12, **settings)]
    batch = embedded.collate([row], document_mask=prompt.keeps_samples_apart)
    theirs = list(generate_batch(embedded, batch, max_new_tokens=12, **settings))
    assert [step.token_id for step in ours] == [int(ids[0]) for ids, _ in theirs]
    assert [step.logprob for step in ours] == pytest.approx([float(logprob[0]) for _, logprob in theirs], abs=1e-5)
    said = [step.token_id for step in ours if step.token_id not in embedded.eos_ids]
    assert "".join(step.text for step in ours) == embedded.decode_text(said)


def test_attention_of_a_position_is_that_of_the_whole_pass(embedded, prompt):
    row = prepare_row(embedded, prompt)
    apart = prompt.keeps_samples_apart
    read = read_row(embedded, row, features_of(embedded, row), document_mask=apart)
    groups = torch.arange(len(row)) % 7
    positions = [0, len(row) // 2, len(row) - 1]
    positions = [p for p in positions if row.attention_mask[p]]
    reader = AttentionReader(positions, groups, 7, keep_patterns=True, weigh_values=True)
    with torch.no_grad():
        embedded.hidden(embedded.collate([row], document_mask=apart), Tap(reader))
    found = read_positions(embedded, read, positions, groups, 7, keep_patterns=True, weigh_values=True)
    assert found.rows.tolist() == positions
    assert torch.allclose(found.patterns, reader.reading.patterns, atol=1e-6)
    assert torch.allclose(found.norms, reader.reading.norms, atol=1e-4)
    with pytest.raises(IndexError):
        read_attention(embedded, read, len(row))


def test_readers_of_a_token_are_a_column_of_the_whole_pass(embedded, prompt):
    row = prepare_row(embedded, prompt)
    apart, length = prompt.keeps_samples_apart, len(row)
    read = read_row(embedded, row, features_of(embedded, row), document_mask=apart)
    rows = [p for p in range(length) if row.attention_mask[p]]
    reader = AttentionReader(rows, torch.zeros(length).long(), 1, keep_patterns=True)
    with torch.no_grad():
        embedded.hidden(embedded.collate([row], document_mask=apart), Tap(reader))
    whole = reader.reading.patterns
    for first, last in ((0, 0), (length // 4, length // 4 + 3), (2 * length // 3, 2 * length // 3), (length - 1,) * 2):
        found = read_readers(embedded, read, last, first=first)
        expected = whole[..., first : last + 1].sum(dim=-1)
        assert torch.allclose(torch.from_numpy(found.pattern)[..., rows], expected, atol=1e-6)
        keys = [key for key in range(first, last + 1) if row.attention_mask[key]]  # nobody looks at a separator
        own = set(row.segment_ids[keys].tolist())
        seen = [p for p in rows if p > last and keys and (not apart or int(row.segment_ids[p]) in own)]
        assert list(found.readers) == seen
        if seen:
            assert found.received == pytest.approx(found.pattern[..., seen].mean(axis=-1))
            top = found.find_top(3, 0, 1)
            assert [one.share for one in top] == sorted(found.pattern[0, 1, seen], reverse=True)[:3]


def test_a_stretch_is_the_mean_of_its_tokens(embedded, prompt):
    row = prepare_row(embedded, prompt)
    read = read_row(embedded, row, features_of(embedded, row), document_mask=prompt.keeps_samples_apart)
    last = max(p for p in range(len(row)) if row.attention_mask[p])
    positions = range(last - 70, last + 1)  # more than are looked at together
    each = [read_attention(embedded, read, p) for p in positions]
    found = read_attention(embedded, read, last, first=positions[0])
    for name, atol in (("pattern", 1e-6), ("image_share", 1e-6), ("entropy", 1e-5), ("entropy_of_max", 1e-5)):
        mean = np.mean([getattr(one, name) for one in each], axis=0)
        assert getattr(found, name) == pytest.approx(mean, abs=atol), name
    assert (found.first, found.position) == (positions[0], last)
    with pytest.raises(ValueError, match="before it begins"):
        read_attention(embedded, read, 3, first=5)


def test_entropy_is_that_of_a_share_for_each_key(embedded):
    """Of four keys: all on one is 0 nats, all alike is ln 4, and half and half is ln 2, half of the most."""
    sample = prepare_row(embedded, prompt_of("two"))
    pattern = np.zeros((1, 3, len(sample)), np.float32)
    pattern[0, 0, 3], pattern[0, 1, :4], pattern[0, 2, :2] = 1, 0.25, 0.5
    found = summarise_pattern(pattern, sample, 3)
    assert found.entropy[0] == pytest.approx([0, np.log(4), np.log(2)])
    assert found.entropy_of_max[0] == pytest.approx([0, 1, 0.5])


def test_what_was_said_stays_in_the_row_token_for_token(embedded):
    """Sampled hot, so that the tokens are none that the text would be split into."""
    settings = GenerationSettings(max_new_tokens=24, temperature=3.0, seed=5)
    inspection = ask_and_inspect(embedded, prompt_of("per-turn"), settings)
    assert inspection.faithful
    splits = 0
    for turn, tokens, places in zip(
        inspection.prompt.turns, inspection.answers, inspection.answer_positions, strict=True
    ):
        said = [token.token_id for token in tokens]
        assert [inspection.table.ids[p] for p in places][: len(turn.answer_ids)] == list(turn.answer_ids)
        assert said[: len(turn.answer_ids)] == list(turn.answer_ids)
        splits += embedded.encode_text(turn.assistant) != list(turn.answer_ids)
    assert splits > 0
    # What a person writes is text again.
    typed = inspection.prompt
    for n, turn in enumerate(inspection.prompt.turns):
        typed = typed.with_answer(n, turn.assistant)
    assert inspect(embedded, typed).row.input_ids.tolist() != inspection.row.input_ids.tolist()


def test_an_answer_of_nothing_is_an_answer(embedded):
    prompt = prompt_of("two").with_answer(0, "", ())
    inspection = inspect(embedded, prompt)
    case = open_case(embedded, inspection)
    assert case.answer_ids == (embedded.eos_token_id,)


# --- counted ---


def test_each_part_of_an_image_is_encoded_once_whatever_is_asked_of_it(embedded, stores, monkeypatch):
    seen: list[bytes] = []
    encode = VLM.encode

    def watched(self, inputs):
        seen.extend(part.numpy().tobytes() for part in inputs)
        return encode(self, inputs)

    monkeypatch.setattr(VLM, "encode", watched)
    inspection = ask_and_inspect(embedded, prompt_of("three"), GenerationSettings())
    own = len(seen)
    assert own == sum(len(image.boxes) for image in inspection.row.images)
    for position in range(20):
        attend(embedded, inspection, position)
    assert len(seen) == own
    *_, found = study_answer(embedded, inspection)
    for one in EXPERIMENTS:
        for _ in one.run(open_case(embedded, inspection), found):
            pass
    assert len(seen) > own  # pictures that stood in for the images
    assert len(seen) == len(set(seen))


def test_a_click_is_one_position_and_asking_reads_the_row_once(embedded, stores, monkeypatch):
    read: list[int] = []
    forward = LanguageModel.forward
    monkeypatch.setattr(
        LanguageModel, "forward", lambda self, x, *a, **k: (read.append(x.shape[1]), forward(self, x, *a, **k))[1]
    )
    inspection = ask_and_inspect(embedded, prompt_of("packed"), GenerationSettings())
    assert sum(read) == len(inspection.row)
    read.clear()
    attend(embedded, inspection, len(inspection.row) - 1)
    assert read == [1]


def test_what_had_to_go_is_read_again(embedded):
    features = FeatureStore(1 << 30)
    rows = RowStore(features, 1)
    one, two = (prepare_row(embedded, prompt_of(name)) for name in ("three", "two"))
    first = rows.read(embedded, one, False)
    assert rows.read(embedded, one, False) is first
    rows.read(embedded, two, False)
    assert rows.counts().rows == 1
    again = rows.read(embedded, one, False)
    assert again is not first
    assert torch.equal(again.states, first.states)
    torch.testing.assert_close(again.losses, first.losses, rtol=0, atol=0, equal_nan=True)
    assert rows.counts().read == 3
    parts = [part.numpy().tobytes() for row in (one, two) for image in row.images for part in image.tiles]
    assert features.counts().encoded == len(set(parts))
    small = FeatureStore(1)
    for row in (one, two, one):
        small.encode(embedded, row.images)
    assert small.counts().parts == 1
    assert small.counts().encoded > len(set(parts))


def test_a_kept_row_has_each_feature_once_and_the_states_that_somebody_asks_for(embedded):
    features = FeatureStore(1 << 30)
    rows = RowStore(features, 1 << 30)
    row = prepare_row(embedded, prompt_of("three"))
    whole = read_row(embedded, row, features.encode(embedded, row.images))
    kept = rows.read(embedded, row, False)
    assert torch.equal(kept.embeds, whole.embeds)
    stored = {part.data_ptr() for part in features.kept}
    assert {part.data_ptr() for part in kept.embedded.features} == stored
    is_image = row.input_ids == embedded.image_token_id
    dropped = torch.nonzero(~kept.has_state)[:, 0].tolist()
    assert len(dropped) == 3 * 15, "of each image's sixteen tokens the last stands before a text"
    assert all(is_image[p] and is_image[p + 1] for p in dropped)
    assert torch.equal(kept.hidden[kept.has_state], whole.hidden[kept.has_state])
    assert bool(kept.hidden[dropped].isnan().all())
    expected = token_losses(embedded, whole.hidden, row)
    torch.testing.assert_close(kept.losses, expected, rtol=0, atol=1e-5, equal_nan=True)


def test_a_row_grown_from_a_kept_one_has_all_losses(embedded):
    """Also where they part among the tokens of an image, of which no state was kept."""
    features = FeatureStore(1 << 30)
    rows = RowStore(features, 1 << 30)
    before = rows.read(embedded, prepare_row(embedded, prompt_of("three")), False)
    for place in (12, 14, 40, len(before.row) - 3):
        ids = before.row.input_ids.clone()
        if ids[place] == embedded.image_token_id:
            pixels = tuple(replace(image, resized=255 - image.resized) for image in before.row.images)
            longer = replace(before.row, images=pixels)
        else:
            ids[place] = 5
            longer = replace(before.row, input_ids=ids)
        grown = rows.read(embedded, longer, False, before)
        whole = read_row(embedded, longer, features.encode(embedded, longer.images))
        expected = token_losses(embedded, whole.hidden, longer)
        torch.testing.assert_close(grown.losses, expected, rtol=0, atol=1e-4, equal_nan=True)


def test_a_test_that_is_given_up_leaves_the_kept_row_as_it_was(embedded, monkeypatch):
    inspection = ask_and_inspect(embedded, prompt_of("three"), GenerationSettings())
    read = ROWS.read(embedded, inspection.row, False)
    before = read.cache.keys.clone(), read.cache.values.clone(), read.states.clone()
    expected = open_case(embedded, inspection)
    logprob = expected.prefix_cache.run([expected.base])[0].logprob
    calls = [0]
    forward = LanguageModel.forward

    def broken(self, *args, **named):
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return forward(self, *args, **named)

    monkeypatch.setattr(LanguageModel, "forward", broken)
    with pytest.raises(KeyboardInterrupt):
        list(study_answer(embedded, inspection))
    monkeypatch.undo()
    assert torch.equal(read.cache.keys, before[0])
    assert torch.equal(read.cache.values, before[1])
    assert torch.equal(read.states, before[2])
    case = open_case(embedded, inspection)
    assert case.prefix_cache.run([case.base])[0].logprob == logprob


def test_two_people_on_two_models_at_once(embedded, stores):
    control = load_vlm("tests/control")
    prompts = [prompt_of("three"), prompt_of("two")]
    expected = {
        (name, n): [turn.assistant for turn in ask_and_inspect(vlm, one, GenerationSettings()).prompt.turns]
        for name, vlm in (("embedded", embedded), ("control", control))
        for n, one in enumerate(prompts)
    }
    FEATURES.clear()
    ROWS.clear()
    found: dict[tuple[str, int], list[str]] = {}

    def run(name, vlm, n):
        for _ in range(3):
            inspection = ask_and_inspect(vlm, prompts[n], GenerationSettings())
            attend(vlm, inspection, 5)
            *_, study = study_answer(vlm, inspection)
            assert all(check.ok for check in study.checks)
        found[name, n] = [turn.assistant for turn in inspection.prompt.turns]

    threads = [
        Thread(target=run, args=(name, vlm, n))
        for name, vlm in (("embedded", embedded), ("control", control))
        for n in (0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


# --- templates and precision ---


def with_template(vlm, template):
    other = VLM(replace(vlm.config, lm_chat_template=template), vlm.tokenizer).eval()
    other.load_state_dict(vlm.state_dict())
    return other


def test_a_template_that_writes_a_system_turn_of_its_own(embedded):
    vlm = with_template(embedded, SMOLLM2_TEMPLATE)
    inspection = ask_and_inspect(vlm, prompt_of("two"), GenerationSettings())
    roles = {span.role for span in inspection.row.spans}
    assert roles == {"template", "user", "assistant"}
    first = next(span for span in inspection.row.spans if span.role == "user")
    opening = vlm.decode_text(inspection.row.input_ids[: first.start].tolist())
    assert opening == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    )
    assert {span.message for span in inspection.row.spans if span.stop <= first.start} == {None}
    *_, found = study_answer(vlm, inspection)
    assert found.verdict is not None
    assert found.turn == len(inspection.prompt.turns)
    # A system turn that a person writes is a system turn, and no question.
    sample = vlm.prepare(Conversation((Message("system", "be brief"), Message("user", "x"))))
    assert [span.role for span in sample.spans if span.kind == "text"] == ["system", "user"]


@pytest.mark.parametrize("template", ["embedded", "smollm2"])
def test_roles_cover_what_each_side_said(embedded, template):
    vlm = embedded if template == "embedded" else with_template(embedded, SMOLLM2_TEMPLATE)
    sample = vlm.prepare(Conversation((Message("user", "a"), Message("assistant", "b"), Message("user", "c"))))
    said = {
        role: "".join(
            vlm.decode_text(sample.input_ids[span.start : span.stop].tolist())
            for span in sample.spans
            if span.role == role
        )
        for role in ("user", "assistant")
    }
    assert said["user"] == "<|im_start|>user\na<|im_end|>\n<|im_start|>user\nc<|im_end|>\n"
    assert said["assistant"] == "<|im_start|>assistant\nb<|im_end|>\n"


def test_half_precision_leaves_the_rotary_angles_alone(embedded):
    half = load_vlm("embedded").to(torch.bfloat16)
    assert half.decoder.rotary_embd.inv_freq.dtype == torch.float32
    assert torch.equal(half.decoder.rotary_embd.inv_freq, embedded.decoder.rotary_embd.inv_freq)
    assert half.dtype == torch.bfloat16
    inspection = ask_and_inspect(half, prompt_of("two"), GenerationSettings())
    case = open_case(half, inspection)
    assert case.prefix_cache.embeds.dtype == torch.bfloat16
    *_, found = study_answer(half, inspection)
    assert all(check.ok for check in found.checks)


def test_decoding_behind_a_change_computes_each_position_once(embedded, monkeypatch):
    inspection = ask_and_inspect(embedded, prompt_of("three"), GenerationSettings())
    cache = PrefixCache(embedded, ROWS.read(embedded, inspection.row, False))
    case = open_case(embedded, inspection)
    first = case.target.scored[0]
    start = case.target.start
    endings = [cache.continuation(start, (first, first), stop=first).cutting(*[]) for _ in range(2)]
    read: list[int] = []
    forward = LanguageModel.forward
    monkeypatch.setattr(
        LanguageModel, "forward", lambda self, x, *a, **k: (read.append(x.shape[1]), forward(self, x, *a, **k))[1]
    )
    monkeypatch.setattr(type(embedded), "eos_token_id", property(lambda self: -1))
    one, two = cache.answer(endings, 10)
    assert one == two
    assert len(one) == 10
    assert read == [2 * (first - start), *[2] * 9]
    again = list(
        ask(
            embedded, replace(inspection.prompt, turns=(Turn(inspection.prompt.turns[0].user),)), GenerationSettings(10)
        )
    )
    assert tuple(token.token_id for _, token in again[1:-1]) == one


def test_the_command_line_tells_what_was_computed(stores, tmp_path, capsys):
    for n, colour in enumerate(("red", "blue")):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{n}.png")
    images = [word for n in range(2) for word in ("--image", str(tmp_path / f"{n}.png"))]
    out = str(tmp_path / "facts.json")
    assert main(["inspect", *images, "--ask", "What color is it?", "--json", out, "--verbose"]) == 0
    told = capsys.readouterr().err
    assert told.startswith("Computed: weights ")
    # The two, and the drawn pictures that each is replaced by to tell what was seen.
    assert " 4 parts " in told
    assert "\nRows: 2 " in told


def test_a_click_is_refused_when_the_model_is_another_one_now(embedded):
    inspection = ask_and_inspect(embedded, prompt_of("two"), GenerationSettings())
    other = load_vlm("tests/control")
    with pytest.raises(InputError, match=rf"#{other.fingerprint[:8]}.*#{embedded.fingerprint[:8]}"):
        attend(other, inspection, 0)
