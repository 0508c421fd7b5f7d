"""The one trainer: it goes through a recipe's stages and says what happens as it happens.

Devices, precision and processes are accelerate's (``accelerate launch -m model.training run …`` trains the same recipe
on many). Every choice of data depends on the seed and a position alone, so a run that is broken off goes on with the
losses that it would have had.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import platform
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from safetensors.torch import save_file
from torch import Tensor, nn

from model.checkpoint import load_vlm, save_vlm
from model.collator import Batch, collate
from model.errors import InputError
from model.image import ProcessedImage
from model.sample import Sample
from model.training.answering import Probe, answer_probes, probe_examples, score
from model.training.batches import (
    MAX_DROPPED,
    FeatureCache,
    PairBatch,
    RowMaker,
    make_pairs,
    usable_sample,
    with_features,
)
from model.training.datasets import Mixture, hold_out, open_captioned, open_examples
from model.training.events import (
    DoneEvent,
    EvalEvent,
    Event,
    FailedEvent,
    SavedEvent,
    StartEvent,
    StepEvent,
)
from model.training.example import CaptionedImage, Example
from model.training.recipe import Recipe, Stage
from model.training.runs import ADAPTER, MODEL, STATE, WRITE_ERRORS, RunFolder, replacing
from model.training.scratch import new_vlm
from model.training.stages import (
    ContrastiveLoss,
    adapter_state,
    belongs_to_model,
    build_optimizer,
    build_stage,
    count_labels,
    lora_config,
    model_name,
    module_sizes,
    plain_vlm,
    rate_factor,
    rates,
)
from model.vlm import VLM

PAUSE_POLL_S = 0.2
SHOWN_ANSWERS = 8
EVAL_ROWS = 16


def choose_precision(wanted: str) -> str:
    """"fp32" or "bf16". "auto" takes bfloat16 on a GPU that computes in it and on processors with AMX: without such
    units a bfloat16 product is emulated and took 15 times as long as float32 where it was measured."""
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if "amx_bf16" in _processor_flags() else "fp32"


def _processor_flags() -> frozenset[str]:
    if platform.system() != "Linux":
        return frozenset()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("flags"):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()


@dataclass(frozen=True)
class _Data:
    """A stage's data: what is trained on and what is held out."""

    counts: dict[str, int]
    mixture: Mixture[Any]
    held_out: Sequence[Any]


class Trainer:
    """Trains ``recipe`` in the folder ``out``; iterate :meth:`run`. With ``resume`` it goes on from the folder's last
    state. ``vlm`` replaces the recipe's base by a model that is there already (it is trained in place)."""

    def __init__(self, recipe: Recipe, out: str | Path, *, resume: bool = False, vlm: VLM | None = None) -> None:
        self.recipe = recipe
        self.folder = RunFolder(Path(out))
        self.precision = choose_precision(recipe.precision)
        self.accelerator = _start_accelerator(recipe, self.precision, out)
        self._stop_asked = False
        self._resumed: tuple[dict[str, Tensor], dict[str, Any]] | None = None
        self._resuming = resume
        run = self.folder.read_run() if resume else None
        if resume:
            self._resumed = self.folder.load_state()
            self._check_state()
        self.vlm = vlm or (new_vlm(recipe.seed) if recipe.base == "new" else load_vlm(recipe.base))
        self.vlm.to(self.accelerator.device)
        if run is not None and run["base_fingerprint"] != self.vlm.fingerprint:
            raise InputError(f"The run in {self.folder.path} began from other weights than “{recipe.base}” has now; "
                             "bring those back or start a new run.")  # fmt: skip
        if self.is_main:
            if run is None:
                self.folder.create(recipe.to_toml(), self.vlm.fingerprint)
            else:
                self.folder.reopen(recipe.to_toml())
            self.folder.clear_request()
        self.accelerator.wait_for_everyone()
        self._changed: set[str] = set()
        self._last_run_update = 0.0

    def _check_state(self) -> None:
        """InputError if the state that was saved is no state of this recipe."""
        if self._resumed is None:
            return
        values = self._resumed[1]
        index, name = values["stage_index"], values["stage"]
        names = [stage.name for stage in self.recipe.stages]
        if index >= len(names) or names[index] != name:
            raise InputError(f"The state in {self.folder.path} is of stage “{name}”, which is not number {index + 1} "
                             f"of the recipe ({', '.join(names)}); go on with the recipe of the run.")  # fmt: skip

    def stop(self) -> None:
        """Asks the run to save, keep and end after the step it is in; may be called from a signal's handler."""
        self._stop_asked = True

    @property
    def is_main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    def run(self) -> Iterator[Event]:
        """Every event, in order; the main process also appends it to ``metrics.jsonl``. After a :class:`FailedEvent`
        the InputError that tells why is raised."""
        names = [stage.name for stage in self.recipe.stages]
        first, step = 0, 0
        if self._resumed is not None:
            tensors, values = self._resumed
            first, step = values["stage_index"], values["step"]
            self._load_model(tensors)
        if self._resuming and self.is_main:
            self.folder.forget_after(first, names, step if self._resumed is not None else -1)
        if self.recipe.tracker:
            self.accelerator.init_trackers("tensorboard")
        stage = self.recipe.stages[first]
        self._update_run(status="running", error=None, stage=stage.name, stage_index=first, pid=os.getpid())
        ended = False
        try:
            for index in range(first, len(self.recipe.stages)):
                stage = self.recipe.stages[index]
                stopped = yield from self._run_stage(index, stage)
                if stopped:
                    break
            ended = True
            yield self._finish(stage, "stopped" if stopped else "done")
        except Exception as error:
            ended = True
            failure = _as_input_error(error, stage)
            yield self._fail(stage, failure or error)
            if failure is None or failure is error:
                raise
            raise failure from error
        finally:
            if not ended:
                # Whoever listened went away, or the process is being ended: the last state is there to go on from.
                self._note(status="stopped")
            if self.recipe.tracker:
                self.accelerator.end_training()
            self.folder.unlock()

    # --- one stage ---

    def _run_stage(self, index: int, stage: Stage) -> Generator[Event, None, bool]:
        """True if somebody asked to stop."""
        contrastive = stage.kind == "contrastive"
        seed = self.recipe.seed + 1000 * index
        data = self._open_data(stage, seed)
        module = build_stage(stage, self.vlm, seed, self.vlm.tokenizer).to(self.accelerator.device)
        sizes = module_sizes(module)
        optimizer = build_optimizer(stage, module)
        step = position = 0
        seconds = 0.0
        asked = "run"
        torch.manual_seed(seed)
        if self._resumed is not None:
            tensors, values = self._resumed
            step, position, seconds = values["step"], values["position"], values["seconds"]
            _load_training(module, optimizer, tensors)
            self._resumed = None  # it may be several times as large as the model
            del tensors
        self._changed |= {model_name(name) for name, parameter in module.named_parameters()
                          if parameter.requires_grad and belongs_to_model(name)}  # fmt: skip
        cache = None if contrastive or "vision_encoder" in stage.learning_rates else FeatureCache(self.vlm)
        wrapped, prepared = self.accelerator.prepare(module, optimizer)
        probes = [] if contrastive else self._probes(data, stage, seed)
        maker = None if contrastive else RowMaker(self.vlm, stage, data.mixture, seed)
        self._update_run(stage=stage.name, stage_index=index, step=step)
        yield self._say(StartEvent(
            stage.name, time.time(), stage.kind, stage.steps, sizes, data.counts, len(data.held_out), self.precision,
            self.accelerator.num_processes, step,
        ))  # fmt: skip
        last_save = last_tick = time.monotonic()
        module.train()
        while step < stage.steps:
            factor = rate_factor(stage, step)
            for group in optimizer.param_groups:
                group["lr"] = stage.learning_rates[group["name"]] * factor
            if maker is None:
                pairs, position, dropped = self._pairs(stage, data.mixture, position, seed)
                loss, work = self._contrast(wrapped, pairs)
            else:
                rows = maker.take(position)
                position, dropped = rows.position, rows.dropped
                loss, work = self._teach(wrapped, rows.samples, stage, cache)
            norm = self._clip(wrapped, stage) if math.isfinite(loss) else math.nan
            if not math.isfinite(norm):
                what = f"gradient became {norm}" if math.isfinite(loss) else f"loss became {loss}"
                raise InputError(f"The {what} at step {step + 1} of stage “{stage.name}”; the weights before that step "
                                 "are kept. Lower the learning rates.")  # fmt: skip
            prepared.step()
            prepared.zero_grad(set_to_none=True)
            step += 1
            now = time.monotonic()
            taken, last_tick = now - last_tick, now
            seconds += taken
            event = StepEvent(
                stage.name, time.time(), step, stage.steps, loss, dict(rates(optimizer)), norm,
                work / max(taken, 1e-9), seconds, seconds / step * (stage.steps - step), dropped,
            )  # fmt: skip
            if self.recipe.tracker:
                self.accelerator.log({f"{stage.name}/loss": loss, f"{stage.name}/gradient_norm": norm}, step=step)
            yield self._say(event)
            if (stage.eval_every and step % stage.eval_every == 0) or step == stage.steps:
                yield self._evaluate(stage, module, data, probes, cache, step, seed)
                module.train()
            asked = self._request()
            ends = step == stage.steps or asked != "run"
            if ends or self._same_everywhere(time.monotonic() - last_save >= stage.save_every_s):
                yield self._save(index, stage, module, optimizer, step, position, seconds)
                last_save = time.monotonic()
            if asked == "pause":
                asked = self._wait()
            if asked == "stop":
                break
            last_tick = time.monotonic()
        self._close(stage, module)
        yield self._save_model(stage, step)
        return asked == "stop" and (step < stage.steps or index < len(self.recipe.stages) - 1)

    def _teach(self, module: nn.Module, samples: Sequence[Sample], stage: Stage, cache: FeatureCache | None
               ) -> tuple[float, int]:  # fmt: skip
        """Gradients of the mean loss over all labels of the step, whatever process or micro-batch they are in.
        Returns that loss and the number of positions."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        micro = [samples[start : start + stage.batch_rows] for start in range(0, len(samples), stage.batch_rows)]
        batches = [self._share(part, rank, world, stage, cache) for part in micro]
        counts = [sum(map(count_labels, batches)), sum(int(batch.attention_mask.sum()) for batch in batches)]
        counted = torch.tensor(counts, device=self.accelerator.device)
        labels, positions = (int(value) for value in self.accelerator.reduce(counted, "sum"))
        if not labels:
            raise InputError("No position of the step has a label, so there is nothing to learn; check the data's "
                             "answers.")  # fmt: skip
        total = torch.zeros((), device=self.accelerator.device)
        for number, batch in enumerate(batches):
            with self._synchronised(module, number == len(batches) - 1):
                loss = module(batch) * (world / labels)
                self.accelerator.backward(loss)
            total += loss.detach().float()
        return float(self.accelerator.reduce(total, "sum")) / world, positions

    def _share(self, rows: Sequence[Sample], rank: int, world: int, stage: Stage, cache: FeatureCache | None) -> Batch:
        """This process's rows of a micro-batch; where there are fewer rows than processes, one without labels: every
        process must take part in the exchange of gradients."""
        empty = torch.zeros_like(rows[0].loss_mask)
        own = rows[rank::world] or [replace(rows[0], loss_mask=empty, attention_mask=empty)]
        return self._batch(own, stage, cache)

    def _synchronised(self, module: nn.Module, last: bool) -> Any:
        """Gradients are exchanged once a step, with its last micro-batch."""
        return contextlib.nullcontext() if last else self.accelerator.no_sync(module)

    def _batch(self, samples: Sequence[Sample], stage: Stage, cache: FeatureCache | None) -> Batch:
        batch = collate(samples, pad_token_id=self.vlm.pad_token_id, document_mask=stage.packing == "document")
        with self.accelerator.autocast():
            return with_features(batch.to(self.accelerator.device), cache)

    def _pairs(self, stage: Stage, mixture: Mixture[CaptionedImage], position: int, seed: int
               ) -> tuple[PairBatch, int, int]:  # fmt: skip
        """The pairs of a step, the next draw's number, and how many were dropped. Every process sees the whole batch:
        the contrast is between all its pairs."""
        items: list[CaptionedImage] = []
        first, reason = position, ""
        count = stage.batch_rows * stage.accumulate
        while len(items) < count:
            try:
                item = mixture.draw(position)
                shown = item.image if isinstance(item.image, ProcessedImage) else self.vlm.process_image(item.image)
                items.append(replace(item, image=shown))
            except InputError as error:
                reason = str(error)
            position += 1
            if position - first - len(items) >= MAX_DROPPED:
                raise InputError(f"{MAX_DROPPED:,} of the pairs of one step can't be used (the last one: {reason}).")
        pairs = make_pairs(self.vlm, items, np.random.default_rng((seed, first)))
        return _pairs_to(pairs, self.accelerator.device), position, position - first - count

    def _contrast(self, module: nn.Module, pairs: PairBatch) -> tuple[float, int]:
        loss = module(pairs) / len(pairs.tiles)
        self.accelerator.backward(loss)
        return float(loss.detach()), len(pairs.tiles)

    def _clip(self, module: nn.Module, stage: Stage) -> float:
        norm = self.accelerator.clip_grad_norm_(module.parameters(), stage.clip or math.inf)
        return float(norm) if norm is not None else 0.0

    # --- data and measuring ---

    def _open_data(self, stage: Stage, seed: int) -> _Data:
        def open_table(table: Any) -> Sequence[Any]:
            if stage.kind == "contrastive":
                return open_captioned(table, self.recipe.folder, self.vlm.config)
            return open_examples(table, self.recipe.folder)

        whole = [open_table(table) for table in stage.data]
        held: list[Any] = [open_table(table) for table in stage.held_out]
        if not stage.held_out:
            parts = [hold_out(source, seed) for source in whole]
            whole, held = [part[0] for part in parts], [part[1] for part in parts]
        weights = tuple(float(table.get("weight", 1.0)) for table in stage.data)
        names = [str(table.get("set") or table.get("path") or table["source"]) for table in stage.data]
        counts: dict[str, int] = {}
        for name, source in zip(names, whole, strict=True):
            counts[name] = counts.get(name, 0) + len(source)
        return _Data(counts, Mixture(tuple(whole), weights, seed), _spread(held, stage.eval_examples, seed))

    def _probes(self, data: _Data, stage: Stage, seed: int) -> list[Probe]:
        if not stage.eval_examples or not self.is_main:
            return []
        return probe_examples(self.vlm, data.held_out, stage.eval_examples, seed)

    def _evaluate(
        self, stage: Stage, module: nn.Module, data: _Data, probes: list[Probe], cache: FeatureCache | None, step: int,
        seed: int,
    ) -> EvalEvent:
        module.eval()
        loss = float("nan")
        if isinstance(module, ContrastiveLoss):
            found: dict[str, float] = {}
            if len(data.held_out):
                pairs = make_pairs(self.vlm, list(data.held_out), np.random.default_rng((seed, 3)))
                with torch.no_grad(), self.accelerator.autocast():
                    value, captions, phrases = module.measure(_pairs_to(pairs, self.accelerator.device))
                loss = float(value)
                found = {"caption": captions} | ({} if math.isnan(phrases) else {"phrase": phrases})
            return self._say(EvalEvent(stage.name, time.time(), step, loss, found))
        loss = self._held_out_loss(data.held_out, cache)
        answered = []
        if probes:
            with self.accelerator.autocast():
                answered = answer_probes(self.vlm, probes)
        return self._say(EvalEvent(stage.name, time.time(), step, loss, score(answered),
                                   tuple(answered[:SHOWN_ANSWERS])))  # fmt: skip

    @torch.no_grad()
    def _held_out_loss(self, examples: Sequence[Example], cache: FeatureCache | None) -> float:
        """Mean over the labels of the held-out examples that can be used; NaN without any."""
        total, labels = 0.0, 0
        for start in range(0, len(examples), EVAL_ROWS):
            samples = [sample for example in examples[start : start + EVAL_ROWS]
                       if (sample := usable_sample(self.vlm, example)) is not None]  # fmt: skip
            batch = collate(samples, pad_token_id=self.vlm.pad_token_id)
            if count := count_labels(batch):
                with self.accelerator.autocast():
                    total += float(self.vlm.loss(with_features(batch.to(self.vlm.device), cache))) * count
                labels += count
        return total / labels if labels else float("nan")

    # --- keeping ---

    def _save(
        self, index: int, stage: Stage, module: nn.Module, optimizer: torch.optim.Optimizer, step: int, position: int,
        seconds: float,
    ) -> SavedEvent:  # fmt: skip
        """The state from which the run goes on exactly."""
        if self.is_main:
            tensors = {f"model:{model_name(name)}": tensor for name, tensor in self.vlm.state_dict().items()
                       if model_name(name) in self._changed}  # fmt: skip
            tensors |= {f"module:{name}": parameter for name, parameter in module.named_parameters()
                        if parameter.requires_grad and not belongs_to_model(name)}  # fmt: skip
            for name, parameter in module.named_parameters():
                moments = optimizer.state.get(parameter, {})
                tensors |= {f"optimizer:{name}:{key}": value for key, value in moments.items()}
            tensors["rng"] = torch.get_rng_state()
            if torch.cuda.is_available():
                tensors["rng_cuda"] = torch.cuda.get_rng_state()
            self.folder.save_state(tensors, {"stage_index": index, "stage": stage.name, "step": step,
                                             "position": position, "seconds": seconds})  # fmt: skip
        self.accelerator.wait_for_everyone()
        self._update_run(step=step)
        return self._say(SavedEvent(stage.name, time.time(), step, STATE))

    def _load_model(self, tensors: dict[str, Tensor]) -> None:
        saved = {name.removeprefix("model:"): tensor for name, tensor in tensors.items() if name.startswith("model:")}
        self.vlm.load_state_dict(saved, strict=False)
        self._changed |= set(saved)

    def _close(self, stage: Stage, module: nn.Module) -> None:
        """Keeps what lives only as long as its stage: the adapter, the text tower."""
        module.eval()
        if self.is_main and stage.lora_rank:
            with replacing(self.folder.path / ADAPTER) as staging:
                lora_config(stage).save_pretrained(staging)
                state = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter_state(self.vlm).items()}
                save_file(state, staging / "adapter_model.safetensors")
        if self.is_main and isinstance(module, ContrastiveLoss):
            with replacing(self.folder.path / "contrastive") as staging:
                state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.dual.state_dict().items()
                         if not name.startswith("vision_encoder.")}  # fmt: skip
                save_file(state, staging / f"{stage.name}.safetensors")
        if stage.lora_rank:
            self.vlm = plain_vlm(self.vlm)
            self._changed |= {name for name, _ in self.vlm.decoder.named_parameters(prefix="decoder")}
        self.vlm.requires_grad_(True)
        self.accelerator.free_memory()

    def _save_model(self, stage: Stage, step: int) -> SavedEvent:
        self._keep_model()
        return self._say(SavedEvent(stage.name, time.time(), step, MODEL))

    def _keep_model(self) -> None:
        """Writes the weights as they are. InputError where that can't be; what was there before stays."""
        if not self.is_main:
            return
        plain = plain_vlm(self.vlm)
        if not all(bool(torch.isfinite(parameter).all()) for parameter in plain.parameters()):
            raise InputError("The weights hold numbers that are not finite; they are not kept.")
        try:
            save_vlm(plain, self.folder.path / MODEL)
        except WRITE_ERRORS as error:
            raise InputError(f"The model can't be saved ({error}); the one before it is kept.") from error

    def _finish(self, stage: Stage, status: str) -> DoneEvent:
        fingerprint = self.vlm.fingerprint
        self._update_run(status=status, fingerprint=fingerprint)
        return self._say(DoneEvent(stage.name, time.time(), status, MODEL, fingerprint))

    def _fail(self, stage: Stage, error: Exception) -> FailedEvent:
        """Keeps the weights, if that is still possible, and says why the run ends."""
        with contextlib.suppress(InputError):  # the sentence that matters is ``error``; an older model may be there
            self._keep_model()
        path = MODEL if (self.folder.path / MODEL).is_dir() else None
        sentence = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        event = FailedEvent(stage.name, time.time(), sentence, path)
        self._note(status="failed", error=sentence)
        with contextlib.suppress(OSError):  # as in _note
            self._say(event)
        return event

    def _note(self, **values: Any) -> None:
        """As :meth:`_update_run`, at the end of a run that can't go on: a full disk can't take the reason either, and
        whoever iterates is told it anyway."""
        with contextlib.suppress(OSError, InputError):
            self._update_run(**values)

    # --- talking ---

    def _say(self, event: Any) -> Any:
        if self.is_main:
            self.folder.append(event)
            if isinstance(event, StepEvent) and time.monotonic() - self._last_run_update > 2:
                self._update_run(step=event.step)
        return event

    def _update_run(self, **values: Any) -> None:
        if self.is_main:
            self.folder.update_run(**values)
            self._last_run_update = time.monotonic()

    def _request(self) -> str:
        """The same answer in every process: the main one reads, any may have been asked by a signal."""
        asked = "stop" if self._stop_asked else self.folder.request if self.is_main else "run"
        if self._same_everywhere(asked == "stop"):
            return "stop"
        return "pause" if self._same_everywhere(asked == "pause") else "run"

    def _same_everywhere(self, flag: bool) -> bool:
        """Whether the flag is set in any process. All must ask at the same place, or they wait for one another."""
        if self.accelerator.num_processes == 1:
            return flag
        return bool(self.accelerator.reduce(torch.tensor(int(flag), device=self.accelerator.device), "sum"))

    def _wait(self) -> str:
        self._update_run(status="paused")
        while (asked := self._request()) == "pause":
            time.sleep(PAUSE_POLL_S)
        self._update_run(status="running")
        return asked


def _spread(sources: Sequence[Sequence[Any]], most: int, seed: int) -> list[Any]:
    """Up to ``most`` items, as many from each source."""
    filled = [source for source in sources if len(source)]
    if not filled or not most:
        return []
    each = max(1, most // len(filled))
    found: list[Any] = []
    for number, source in enumerate(filled):
        order = np.random.default_rng((seed, 13, number)).permutation(len(source))[:each]
        for n in order:
            with contextlib.suppress(InputError):  # as training drops what can't be read
                found.append(source[int(n)])
    return found


def _pairs_to(pairs: PairBatch, device: torch.device) -> PairBatch:
    return PairBatch(pairs.tiles.to(device), pairs.captions, pairs.caption_of_tile.to(device), pairs.phrases,
                     pairs.patch_places.to(device), pairs.phrase_of_place.to(device))  # fmt: skip


def _load_training(module: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """InputError if the state is of other parameters than those that the stage trains."""
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    own = {name.removeprefix("module:"): tensor for name, tensor in tensors.items() if name.startswith("module:")}
    state: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer:"):
            _, name, what = key.split(":")
            state.setdefault(name, {})[what] = tensor
    for name, found in [*own.items(), *((name, values["exp_avg"]) for name, values in state.items())]:
        if name not in trained or trained[name].shape != found.shape:
            raise InputError(f"The state has {name} of shape {tuple(found.shape)}, which this stage doesn't train; go "
                             "on with the learning_rates and lora_rank of the run.")  # fmt: skip
    with torch.no_grad():
        for name, tensor in own.items():
            trained[name].copy_(tensor)
    for name, values in state.items():
        device = trained[name].device
        optimizer.state[trained[name]] = {
            what: value if what == "step" else value.to(device) for what, value in values.items()
        }
    torch.set_rng_state(tensors["rng"].cpu().to(torch.uint8))
    if "rng_cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng_cuda"].cpu().to(torch.uint8))


def _start_accelerator(recipe: Recipe, precision: str, out: str | Path) -> Accelerator:
    """InputError for a way to launch that this trainer can't serve, before anything is loaded."""
    if recipe.tracker and not any(importlib.util.find_spec(name) for name in ("tensorboard", "tensorboardX")):
        raise InputError("tracker is “tensorboard” and TensorBoard isn't installed; pip install tensorboard, or leave "
                         "tracker out.")  # fmt: skip
    for engine in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{engine}", "").lower() == "true":
            raise InputError(f"accelerate was asked for {engine}, which this trainer doesn't do; launch it with plain "
                             "data parallelism (--multi_gpu, or --cpu with several processes).")  # fmt: skip
    # accelerate keeps one state for the whole process and refuses another precision; a second run may want one.
    AcceleratorState._reset_state()
    return Accelerator(
        mixed_precision="bf16" if precision == "bf16" else "no",
        log_with=recipe.tracker or None,
        project_dir=str(out) if recipe.tracker else None,
        # Prompts without pictures leave the projector out of some steps.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def _as_input_error(error: Exception, stage: Stage) -> InputError | None:
    """What a person can do something about, said in one sentence; None for what is a fault of the program."""
    if isinstance(error, InputError):
        return error
    memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
    if memory or (isinstance(error, RuntimeError) and "allocate memory" in str(error)):
        return InputError(f"The memory doesn't suffice for stage “{stage.name}”; lower batch_rows (and raise "
                          "accumulate as much), or row_tokens.")  # fmt: skip
    if isinstance(error, WRITE_ERRORS):
        return InputError(f"Stage “{stage.name}” can't read or write a file ({error}).")
    return None
