"""The one trainer: it goes through a recipe's stages and says what happens as it happens.

Devices, precision and processes are accelerate's (``torchrun --nproc-per-node 2 -m model.training run …`` trains the
same recipe on many). Every choice of data depends on the seed and a position alone, so a run that is broken off goes
on with the losses that it would have had.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from model.errors import InputError
from model.families.nanovlm import VLM
from model.families.protocol import InspectableVLM
from model.training.accelerator import choose_precision, shares_weights, start_accelerator
from model.training.assembly import open_base
from model.training.batches import FeatureCache
from model.training.cpu import read_peak
from model.training.data.ledger import Entry, Ledger, StageLedger, join_entries, read_stage_ledgers
from model.training.evaluation.held_out import HeldOut
from model.training.events import DoneEvent, EvalEvent, Event, FailedEvent, SavedEvent, StartEvent, StepEvent
from model.training.failures import NotFiniteError, explain_failure
from model.training.feed import Feed
from model.training.first_batch import show_rows
from model.training.keeping import close_stage, keep_model
from model.training.learners import LanguageLearner, Learner, PairLearner
from model.training.memory_estimate import MemoryEstimate, draw_step, estimate_stage
from model.training.recipe import Recipe, Stage
from model.training.runs import MODEL, STATE, RunFolder
from model.training.sharding import Sharded
from model.training.stage_data import look_at_stage, open_stage_data, stage_seed
from model.training.stages import build_optimizer, build_stage, module_sizes, rate_factor, rates, shard_stage
from model.training.trainer_state import (
    GoodWeights,
    State,
    check_data,
    check_state,
    gather_state,
    load_model_state,
    load_stage_state,
    trained_names,
)
from model.training.tuned import Trainee, TunedVLM

PAUSE_POLL_S = 0.2


class Trainer:
    """Trains ``recipe`` in the folder ``out``; iterate :meth:`run`. With ``resume`` it goes on from the folder's last
    state. ``vlm`` replaces the recipe's base by a model that is there already (it is trained in place).
    ``keep_request``: a run that goes on follows what its folder's control file asks for already; without it, that is
    taken for what an earlier process was asked."""

    def __init__(
        self,
        recipe: Recipe,
        out: str | Path,
        *,
        resume: bool = False,
        vlm: Trainee | None = None,
        keep_request: bool = False,
    ) -> None:
        self.recipe = recipe
        self.folder = RunFolder(Path(out))
        self.precision = choose_precision(recipe.precision)
        self.accelerator = start_accelerator(recipe, Path(out))
        self._stop_asked = False
        self._resumed: State | None = None
        self._resuming = resume
        run = self.folder.read_run() if resume else None
        if resume:
            self._resumed = self.folder.load_state()
            if self._resumed is not None:
                check_state(self._resumed[1], recipe, self.folder.path)
        self.vlm = vlm or open_base(recipe)
        self._shared = shares_weights(recipe, self.accelerator.num_processes)
        if self._shared and isinstance(self.vlm, TunedVLM):
            raise InputError(
                f"FSDP shares out the weights of a nanoVLM alone, and this is a {self.vlm.opened.name} model, of which "
                "little is trained; set parallel to “ddp”, or leave out accelerate's --use_fsdp."
            )
        self.vlm.to(self.accelerator.device)
        base = self.vlm.base_fingerprint if isinstance(self.vlm, TunedVLM) else self.vlm.fingerprint
        if run is not None and run["base_fingerprint"] != base:
            raise InputError(
                f"The run in {self.folder.path} began from other weights than “{recipe.base}” has now; "
                "bring those back or start a new run."
            )
        if self.is_main:
            if run is None:
                self.folder.create(recipe.to_toml(), base)
            else:
                self.folder.reopen(recipe.to_toml())
                if not keep_request:
                    self.folder.clear_request()
        self.accelerator.wait_for_everyone()
        self._ledger: dict[str, StageLedger] = read_stage_ledgers(run.get("ledger") if run is not None else None)
        self._estimates: dict[str, MemoryEstimate] = {}
        self._changed: set[str] = set()
        self._feed: Feed | None = None
        self._sound = True
        """Whether the weights of this moment may be kept."""
        self._last_run_update = 0.0

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
            self._changed |= load_model_state(self.vlm, tensors)
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
            failure = explain_failure(error, stage, self._estimates.get(stage.name))
            yield self._fail(stage, failure or error)
            if failure is None or failure is error:
                raise
            raise failure from error
        finally:
            if not ended:
                # Whoever listened went away, or the process is being ended: the last state is there to go on from.
                self._note(status="stopped")
            if self._feed is not None:
                self._feed.close()
            if self.recipe.tracker:
                self.accelerator.end_training()
            self.folder.unlock()

    # --- one stage ---

    def _run_stage(self, index: int, stage: Stage) -> Generator[Event, None, bool]:
        """True if somebody asked to stop."""
        seed = stage_seed(self.recipe, index)
        opened: InspectableVLM = self.vlm.opened if isinstance(self.vlm, TunedVLM) else self.vlm
        data = open_stage_data(self.recipe, index, None if isinstance(self.vlm, TunedVLM) else self.vlm.config)
        if self._resumed is not None:
            check_data(self._resumed[1], stage, data.digest, self.folder.path)
        self._open_ledger(stage, look_at_stage(opened, self.recipe, index, data))
        if self.is_main:
            first = draw_step(opened, self.recipe, index, data)
            sharing = self.accelerator.num_processes if self._shared else 1
            self._estimates[stage.name] = estimate_stage(self.vlm, self.recipe, index, data, first, sharing)
            self.folder.keep_first_batch(index, stage.name, show_rows(opened, first))
        module = build_stage(stage, self.vlm, seed, self.vlm.tokenizer).to(self.accelerator.device)
        sizes = module_sizes(module)
        sharded = shard_stage(stage, module, self.accelerator) if self._shared else None
        optimizer = build_optimizer(stage, module)
        step = position = 0
        seconds = 0.0
        asked = "run"
        torch.manual_seed(seed)
        if self._resumed is not None:
            tensors, values = self._resumed
            step, position, seconds = values["step"], values["position"], values["seconds"]
            load_stage_state(module, optimizer, tensors)
            self._resumed = None  # it may be several times as large as the model
            del tensors
        self._changed |= trained_names(module)
        contrastive = stage.kind == "contrastive"
        cache = (
            None
            if contrastive or "vision_encoder" in stage.learning_rates
            else (FeatureCache(self.vlm, self.recipe.cache_mib << 20))
        )
        wrapped = self.accelerator.prepare(module) if sharded is None else sharded
        prepared = self.accelerator.prepare(optimizer)
        held_out = HeldOut(self.vlm, self.accelerator, stage, data.held_out, seed, cache)
        learner: Learner
        if contrastive:
            assert isinstance(self.vlm, VLM)
            learner = PairLearner(self.vlm, self.accelerator, stage, data.mixture, seed, self.recipe.workers)
        else:
            learner = LanguageLearner(self.vlm, self.accelerator, stage, data.mixture, seed, cache, self.recipe.workers)
        self._feed = learner.feed
        good = GoodWeights(module)
        self._update_run(stage=stage.name, stage_index=index, step=step, memory=self._memory_json())
        yield self._say(
            StartEvent(
                stage.name,
                time.time(),
                stage.kind,
                stage.steps,
                sizes,
                data.counts,
                len(held_out),
                self.precision,
                self.accelerator.num_processes,
                step,
            )
        )
        if step == 0 and stage.eval_every:
            yield self._measure(held_out, module, sharded, good, stage, step)
        last_save = last_tick = time.monotonic()
        module.train()
        while step < stage.steps:
            factor = rate_factor(stage, step)
            for group in optimizer.param_groups:
                group["lr"] = stage.learning_rates[group["name"]] * factor
            learned = learner.learn(wrapped, position)
            position = learned.position
            self._pass_over(learner)
            if not math.isfinite(learned.loss):
                self._fall_back(good, stage, f"loss became {learned.loss} at step {step + 1}")
            good.keep()
            norm = self._clip(wrapped, stage)
            if not math.isfinite(norm):
                # The loss of these weights is finite: they are the last good ones themselves.
                self._fall_back(good, stage, f"gradient became {norm} at step {step + 1}")
            prepared.step()
            prepared.zero_grad(set_to_none=True)
            step += 1
            now = time.monotonic()
            taken, last_tick = now - last_tick, now
            seconds += taken
            event = StepEvent(
                stage.name,
                time.time(),
                step,
                stage.steps,
                learned.loss,
                dict(rates(optimizer)),
                norm,
                learned.work / max(taken, 1e-9),
                seconds,
                seconds / step * (stage.steps - step),
                learned.dropped,
                *learner.feed.last_step,
            )
            if self.recipe.tracker:
                values = {f"{stage.name}/loss": learned.loss, f"{stage.name}/gradient_norm": norm}
                self.accelerator.log(values, step=step)
            yield self._say(event)
            if (stage.eval_every and step % stage.eval_every == 0) or step == stage.steps:
                yield self._measure(held_out, module, sharded, good, stage, step)
            asked = self._request()
            ends = step == stage.steps or asked != "run"
            if ends or self._same_everywhere(time.monotonic() - last_save >= stage.save_every_s):
                yield self._save(index, stage, module, optimizer, step, position, seconds, data.digest)
                last_save = time.monotonic()
            if asked == "pause":
                asked = self._wait()
            if asked == "stop":
                break
            last_tick = time.monotonic()
        learner.feed.close()
        self._close(stage, module)
        yield self._save_model(stage, step)
        return asked == "stop" and (step < stage.steps or index < len(self.recipe.stages) - 1)

    def _measure(
        self,
        held_out: HeldOut,
        module: nn.Module,
        sharded: Sharded | None,
        good: GoodWeights,
        stage: Stage,
        step: int,
    ) -> EvalEvent:
        """On what the stage holds out, first of all with the weights that it begins with."""
        with sharded.whole() if sharded is not None else contextlib.nullcontext():
            found = held_out.measure(module)
        loss = math.nan if found.loss is None else found.loss
        event = EvalEvent(
            stage.name, time.time(), step, loss, found.accuracy, found.answers, found.shares, found.counts
        )
        self._say(event)
        if found.loss is not None and not math.isfinite(found.loss):
            self._fall_back(good, stage, f"held-out loss became {found.loss} after step {step}")
        return event

    def _clip(self, module: nn.Module, stage: Stage) -> float:
        if isinstance(module, Sharded):
            return module.clip(stage.clip or math.inf)
        norm = self.accelerator.clip_grad_norm_(module.parameters(), stage.clip or math.inf)
        return float(norm) if norm is not None else 0.0

    def _fall_back(self, good: GoodWeights, stage: Stage, what: str) -> NoReturn:
        """Ends the run with the weights whose loss was finite; those that it began with aren't worth keeping if theirs
        is not."""
        self._sound = good.restore()
        kept = "the last weights with a finite loss are kept" if self._sound else "so it was with the first weights"
        raise NotFiniteError(f"The {what} of stage “{stage.name}”; {kept}. Lower the learning rates.")

    # --- memory ---

    def _memory_json(self) -> dict[str, Any]:
        """What each stage was to take, and the most that the run took by now, in bytes."""
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else read_peak()
        return {"peak": peak, "stages": {name: found.to_json() for name, found in self._estimates.items()}}

    # --- the account of the data ---

    def _open_ledger(self, stage: Stage, tables: tuple[Ledger, ...]) -> None:
        """The account of the stage's data; what was passed over before a break is in the state."""
        saved = self._resumed[1].get("passed_over", []) if self._resumed is not None else []
        self._ledger[stage.name] = StageLedger(tables, tuple(Entry(**entry) for entry in saved))
        self._update_run(ledger=self._ledger_json())

    def _pass_over(self, learner: Learner) -> None:
        if learner.passed_over:
            name = learner.stage.name
            known = self._ledger[name]
            self._ledger[name] = replace(known, passed_over=join_entries((*known.passed_over, *learner.passed_over)))
            learner.passed_over.clear()

    def _ledger_json(self) -> dict[str, Any]:
        return {name: ledger.to_json() for name, ledger in self._ledger.items()}

    def describe_data(self) -> list[str]:
        """The account of the data so far, for people."""
        return [line for name, ledger in self._ledger.items() for line in ledger.lines(name)]

    # --- keeping ---

    def _save(
        self,
        index: int,
        stage: Stage,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        step: int,
        position: int,
        seconds: float,
        digest: str,
    ) -> SavedEvent:
        """The state from which the run goes on exactly."""
        if self.is_main or self._shared:
            tensors = gather_state(self.vlm, module, optimizer, self._changed, self.is_main)
        if self.is_main:
            self.folder.save_state(
                tensors,
                {
                    "stage_index": index,
                    "stage": stage.name,
                    "step": step,
                    "position": position,
                    "seconds": seconds,
                    "data": {"digest": digest},
                    "passed_over": [asdict(entry) for entry in self._ledger[stage.name].passed_over],
                },
            )
        self.accelerator.wait_for_everyone()
        self._update_run(step=step, ledger=self._ledger_json(), memory=self._memory_json())
        return self._say(SavedEvent(stage.name, time.time(), step, STATE))

    def _close(self, stage: Stage, module: nn.Module) -> None:
        """Keeps what lives only as long as its stage, and has the model ready for the next."""
        module.eval()
        self.vlm = close_stage(self.vlm, stage, module, self.folder, writes=self.is_main, shared=self._shared)
        if isinstance(self.vlm, VLM):
            if stage.lora_rank:
                self._changed |= {name for name, _ in self.vlm.decoder.named_parameters(prefix="decoder")}
            self.vlm.requires_grad_(True)
        self.accelerator.free_memory()

    def _save_model(self, stage: Stage, step: int) -> SavedEvent:
        if self.is_main:
            keep_model(self.vlm, self.folder, writes=True)
        return self._say(SavedEvent(stage.name, time.time(), step, MODEL))

    def _finish(self, stage: Stage, status: str) -> DoneEvent:
        fingerprint = self.vlm.fingerprint
        self._update_run(status=status, fingerprint=fingerprint, ledger=self._ledger_json(), memory=self._memory_json())
        return self._say(DoneEvent(stage.name, time.time(), status, MODEL, fingerprint))

    def _fail(self, stage: Stage, error: Exception) -> FailedEvent:
        """Keeps the weights, if they are good and that is still possible, and says why the run ends."""
        # Weights that are shared out can be put together only where all processes come to this place.
        if self._sound and (isinstance(error, NotFiniteError) if self._shared else self.is_main):
            with contextlib.suppress(InputError):  # the sentence that matters is ``error``; an older model may be there
                keep_model(self.vlm, self.folder, writes=self.is_main)
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
