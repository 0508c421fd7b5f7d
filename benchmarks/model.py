"""``python -m benchmarks model``: prefill and decode against transformers' own modules, and what a read-out costs."""

from __future__ import annotations

import statistics
from multiprocessing import get_context

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel

from benchmarks.timing import SHAPE_222M, embedded_tokenizer, measure, peak_mib, report, reset_peak
from model import VLM, AttentionReader, Batch, Tap, VLMConfig
from model.generate import generate_batch
from model.language import LanguageModel
from model.masks import build_mask


@torch.inference_mode()
def compare_with_transformers(repeats: int) -> None:
    """The 222M shape (ViT-B/16-224 and a 135M Llama) with the same weights in both: prefill of one image and 70 tokens
    of prompt, and greedy decode."""
    config = VLMConfig(**SHAPE_222M)
    vlm = VLM(config, embedded_tokenizer()).eval()
    vision = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            image_size=224,
            patch_size=16,
            vision_use_head=False,
        )
    ).eval()
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.lm_vocab_size,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            max_position_embeddings=8192,
            rms_norm_eps=config.lm_rms_eps,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        )
    ).eval()
    _share_weights(vlm, vision, llama)
    tiles = torch.rand(1, 3, 224, 224)
    ids = torch.full((1, 70), 5)
    ids[:, 4:53] = vlm.image_token_id
    batch = Batch(
        ids,
        torch.ones_like(ids).bool(),
        torch.full_like(ids, -100),
        torch.arange(70)[None],
        torch.zeros_like(ids),
        tiles,
        torch.zeros(1, dtype=torch.long),
    )

    def our_prefill() -> torch.Tensor:
        return next(iter(generate_batch(vlm, batch, max_new_tokens=2, eos_token_id=-1)))[0]

    def their_embeds() -> torch.Tensor:
        embeds = llama.model.embed_tokens(ids)
        features = vlm.MP(vision(pixel_values=tiles).last_hidden_state)
        return embeds.masked_scatter((ids == vlm.image_token_id)[..., None], features)

    def their_prefill() -> torch.Tensor:
        out = llama(inputs_embeds=their_embeds(), use_cache=True, past_key_values=DynamicCache(), logits_to_keep=1)
        return out.logits[:, -1].argmax(-1)

    assert torch.equal(our_prefill(), their_prefill()), "the two models disagree: the weights are not the same"
    report("prefill, 222M shape, one image, 70 tokens", *measure(our_prefill, their_prefill, repeats), "transformers")

    steps = 32

    def our_decode() -> list[int]:
        return [int(token) for token, _ in generate_batch(vlm, batch, max_new_tokens=steps, eos_token_id=-1)]

    def their_decode() -> list[int]:
        cache = DynamicCache()
        out = llama(inputs_embeds=their_embeds(), use_cache=True, past_key_values=cache, logits_to_keep=1)
        found = [int(out.logits[:, -1].argmax(-1))]
        for _ in range(steps - 1):
            out = llama(input_ids=torch.tensor([found[-1:]]), use_cache=True, past_key_values=cache)
            found.append(int(out.logits[:, -1].argmax(-1)))
        return found

    same = our_decode() == their_decode()
    print(f"greedy ids of {steps} steps agree: {same}")
    report(
        f"prefill and {steps} greedy tokens, 222M shape", *measure(our_decode, their_decode, repeats), "transformers"
    )


def _share_weights(vlm: VLM, vision: SiglipVisionModel, llama: LlamaForCausalLM) -> None:
    names = {
        "norm1": "input_layernorm",
        "norm2": "post_attention_layernorm",
        "attn.q_proj": "self_attn.q_proj",
        "attn.k_proj": "self_attn.k_proj",
        "attn.v_proj": "self_attn.v_proj",
        "attn.out_proj": "self_attn.o_proj",
        "mlp.gate_proj": "mlp.gate_proj",
        "mlp.up_proj": "mlp.up_proj",
        "mlp.down_proj": "mlp.down_proj",
    }
    state = llama.model.state_dict()
    target = vlm.decoder.state_dict()
    target["token_embedding.weight"].copy_(state["embed_tokens.weight"])
    target["norm.weight"].copy_(state["norm.weight"])
    for layer in range(vlm.config.lm_n_blocks):
        for ours, theirs in names.items():
            target[f"blocks.{layer}.{ours}.weight"].copy_(state[f"layers.{layer}.{theirs}.weight"])
    names = {
        "ln1": "layer_norm1",
        "ln2": "layer_norm2",
        "attn.out_proj": "self_attn.out_proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    state = {name.removeprefix("vision_model."): tensor for name, tensor in vision.state_dict().items()}
    target = vlm.vision_encoder.state_dict()
    target["patch_embedding.position_embedding"].copy_(state["embeddings.position_embedding.weight"][None])
    for end in ("weight", "bias"):
        target[f"patch_embedding.conv.{end}"].copy_(state[f"embeddings.patch_embedding.{end}"])
        target[f"layer_norm.{end}"].copy_(state[f"post_layernorm.{end}"])
        for layer in range(vlm.config.vit_n_blocks):
            block = f"encoder.layers.{layer}"
            qkv = torch.cat([state[f"{block}.self_attn.{name}_proj.{end}"] for name in "qkv"])
            target[f"blocks.{layer}.attn.qkv_proj.{end}"].copy_(qkv)
            for ours, theirs in names.items():
                target[f"blocks.{layer}.{ours}.{end}"].copy_(state[f"{block}.{theirs}.{end}"])


@torch.inference_mode()
def measure_readout(tokens: int, rows: int, repeats: int) -> None:
    """A read-out of the last ``rows`` rows in groups, beside the plain forward: 32 layers, 15 heads, 960 wide."""
    config = VLMConfig(lm_hidden_dim=960, lm_inter_dim=2560, lm_n_heads=15, lm_n_kv_heads=5, lm_n_blocks=32)
    decoder = LanguageModel(config).eval()
    embeds = torch.randn(1, tokens, 960)
    positions = torch.arange(tokens)[None]
    mask = build_mask(torch.ones(1, tokens, dtype=torch.bool), None, tokens)
    groups = torch.arange(tokens) * 16 // tokens
    peaks: dict[str, list[float]] = {"plain": [], "read": []}

    def plain() -> torch.Tensor:
        reset_peak()
        hidden = decoder(embeds, mask, positions)
        peaks["plain"].append(peak_mib())
        return hidden

    def read() -> torch.Tensor:
        reset_peak()
        reader = AttentionReader(list(range(tokens - rows, tokens)), groups, 16)
        hidden = decoder(embeds, mask, positions, tap=Tap(reader=reader))
        peaks["read"].append(peak_mib())
        assert torch.allclose(reader.reading.shares.sum(-1), torch.ones(()), atol=1e-4)
        return hidden

    assert torch.equal(plain(), read()), "reading changed the hidden states"
    for peak in peaks.values():
        peak.clear()  # the first pass takes memory that the later ones find there
    ours, theirs = measure(read, plain, repeats)
    report(f"forward with a read-out of {rows} rows, {tokens} tokens", ours, theirs, "plain forward")
    memory = statistics.median(peaks["read"]) / statistics.median(peaks["plain"])
    print(
        f"peak memory with the read-out / without: {memory:.3f}; all attention kept would be "
        f"{32 * 15 * tokens**2 * 2 / 2**30:.1f} GiB in half precision"
    )


def main(repeats: int, tokens: int = 4096) -> None:
    # A process for each: what one leaves behind in memory would be counted against the other.
    for part, arguments in (
        (compare_with_transformers, (repeats,)),
        (measure_readout, (tokens, 32, max(1, repeats // 3))),
    ):
        process = get_context("spawn").Process(target=part, args=arguments)
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(process.exitcode)
