"""The one training loop: data, step, logging, validation, checkpoints, resume.

It serves every stage (`stage.py`), backend, precision and number of processes.
"""

import logging
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..checkpoint import (
    load_model,
    load_state,
    load_training_state,
    save_model,
    save_training_state,
    weights_digest,
)
from ..errors import CheckpointError, TrainingError
from . import distributed
from .config import TrainConfig
from .data import HeldOut, TrainingData
from .means import Weighted, means, sums, weight_of
from .metrics import MetricsTable
from .random_state import random_state, set_random_state
from .run_folder import RunFolder
from .stage import Stage, StepResult

log = logging.getLogger(__name__)

MAX_NAN_STEPS = 10  # in a row, before training gives up
AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def progress_bar(name: str, done: int, steps: int, shown: bool) -> Any:
    """A bar with loss and speed; redrawn rarely where the output is a file."""
    from tqdm import tqdm  # `--help` does without

    pause = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(
        total=steps, initial=done, desc=name, unit="step", disable=not shown, mininterval=pause
    )


class Trainer:
    """The loop: data, step, logging, validation, checkpoints, resume.

    Args:
        config: what to train.
        stage: which stage of it.
        data: training batches by step.
        held_out: whole clips for validation; used by the first process only.
        folder: the run's.
        device: to train on.
        workers: processes that read data ahead; 0 reads in this one.
    """

    def __init__(
        self,
        config: TrainConfig,
        stage: Stage[Any],
        data: TrainingData,
        held_out: Sequence[HeldOut],
        folder: RunFolder,
        device: torch.device,
        workers: int = 0,
    ) -> None:
        self.config = config
        self.stage = stage
        self.data = data
        self.held_out = held_out
        self.folder = folder
        self.device = device
        self.workers = workers
        self.rank, self.world_size = distributed.join(device)
        if stage.batch_size % (self.world_size * config.accumulate):
            raise ValueError(
                f"batch size: expected a multiple of processes x --accumulate, "
                f"{self.world_size} x {config.accumulate}, got {stage.batch_size}"
            )
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "fp16")
        self.step = 0  # steps completed
        self.nan_steps = 0  # in a row
        self.skipped_steps = 0
        self.skipped_clips: set[int] = set()
        self.notes: dict[str, Any] = {}  # figures before training, kept over a resume

    def run(self) -> dict[str, Any]:
        """Train to the end.

        Returns:
            the stage's held-out figures before and after, its speed and what was skipped; empty in
            all processes but the first.

        Raises:
            TrainingError: the loss stayed NaN or infinite.
            CheckpointError: a checkpoint cannot be written, or the one to resume does not fit.
            DataError: too many clips are unusable.
        """
        self._start_or_resume()
        stage, steps = self.stage, self.stage.steps
        main = self.rank == 0
        table = MetricsTable(self.folder.metrics(stage.name), self.step) if main else None
        batches = DataLoader(
            self.data,
            batch_size=None,
            sampler=range(self.step, steps),
            num_workers=self.workers,
            generator=torch.Generator(),  # or every start would draw from the global one
        )
        first, began = self.step, time.perf_counter()
        with progress_bar(stage.name, self.step, steps, shown=main) as bar:
            for batch in batches:
                weighted = self._train_step(batch)
                self.step += 1
                last = self.step == steps
                validates = self.step % self.config.validate_every == 0 or last
                if validates or self.step % self.config.log_every == 0 or self.step == 1:
                    figures = means(weighted)
                    figures["steps_per_second"] = (self.step - first) / (
                        time.perf_counter() - began
                    )
                    if table is not None:
                        if validates:
                            figures |= self._validate()
                        table.add(self.step, figures)
                    bar.set_postfix(loss=f"{figures['loss']:.3f}", refresh=False)
                bar.update()
                if self.step % self.config.checkpoint_every == 0 and not last:
                    self._save()
        seconds = time.perf_counter() - began
        distributed.barrier()
        if not main:
            return {}
        self._save()
        return {
            **self.notes,
            "trained": stage.validate(self.held_out),
            **stage.comparisons(self.data, self.held_out, self.notes),
            "steps": steps,
            "steps_per_second": (steps - first) / seconds if steps > first else None,
            "skipped": {"steps": self.skipped_steps, "clips": len(self.skipped_clips)},
        }

    def _start_or_resume(self) -> None:
        stage = self.stage
        saved = None
        if self.folder.state.exists():
            saved = load_training_state(self.folder.state)
            if saved.get("stage") != stage.name:
                if saved.get("stage") not in self.folder.results():
                    raise CheckpointError(
                        f"{self.folder.state}: holds {saved.get('stage')} at step "
                        f"{saved.get('step')}, to be finished before {stage.name}: "
                        f"--resume {self.folder.path} --stage {saved.get('stage')}"
                    )
                saved = None
        if saved is None:
            if self.rank == 0:
                self.notes["random"] = stage.validate(self.held_out)
                if stage.recipe.init is not None:
                    self._begin_with(stage.recipe.init, stage.recipe.init_digest)
                    self.notes["given"] = stage.validate(self.held_out)
                elif stage.starts_from_data:
                    stage.start(self.data)
                    self.notes["start"] = stage.validate(self.held_out)
            distributed.broadcast(stage.models.values())
            stage.begin()
            return
        stage.begin()
        try:
            for name, model in stage.models.items():
                model.load_state_dict(saved["models"][name])
            for name, optimiser in stage.optimisers.items():
                optimiser.load_state_dict(saved["optimisers"][name])
            stage.load_extra_state(saved["extra"])
            self.scaler.load_state_dict(saved["scaler"])
            set_random_state(saved["rng"], self.device)
            self.step, self.notes = saved["step"], saved["notes"]
            self.skipped_steps = saved["skipped_steps"]
            self.skipped_clips = set(saved["skipped_clips"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self.folder.state}: does not fit this run: {error!r}"
            ) from error
        log.info("resumed %s at step %d of %d", stage.name, self.step, stage.steps)

    def _begin_with(self, path: str, digest: str | None) -> None:
        """Load the product's weights from a checkpoint.

        Raises:
            CheckpointError: they cannot be read, or are not those that the run was made for.
        """
        stage = self.stage
        found = weights_digest(path, stage.name)
        if found != digest:
            raise CheckpointError(
                f"{path}: holds other weights than the run was begun with: their sha256 is "
                f"{found}, not {digest}"
            )
        load_state(stage.product, load_model(path, stage.name).state, path)

    def _save(self) -> None:
        if self.rank != 0:
            return
        stage = self.stage
        for name, model in stage.models.items():
            if not all(torch.isfinite(p).all() for p in model.parameters()):
                raise TrainingError(f"{name}: weights are not finite; {self._kept()}")
        state = {
            "stage": stage.name,
            "step": self.step,
            "models": {name: model.state_dict() for name, model in stage.models.items()},
            "optimisers": {name: o.state_dict() for name, o in stage.optimisers.items()},
            "extra": stage.extra_state(),
            "scaler": self.scaler.state_dict(),
            "rng": random_state(self.device),
            "skipped_steps": self.skipped_steps,
            "skipped_clips": sorted(self.skipped_clips),
            "notes": self.notes,
        }
        save_training_state(self.folder.state, state)
        save_model(
            self.folder.model(stage.name),
            stage.name,
            stage.product,
            self.config.mel,
            step=self.step,
            frames_per_code=self.config.frames_per_code,
            pooling=self.config.pooling,
            **stage.checkpoint_extra(),
        )

    def _train_step(self, batch: Any) -> dict[str, list[Weighted]]:
        """All passes over one batch; returns figures to log, of this process's micro-batches."""
        stage = self.stage
        self.skipped_clips.update(stage.skipped(batch))
        parts = stage.split(batch, self.config.accumulate)
        results: list[dict[str, StepResult]] = [{} for _ in parts]
        epoch = self.step * stage.batch_size // len(self.data.entries)
        factor = stage.learning_rate_factor(self.step, epoch)
        figures: dict[str, list[Weighted]] = {}
        for name in stage.passes(self.step):
            loss = self._train_pass(name, parts, results, factor)
            figures["loss"] = [(loss, 1.0)]
            passed = [result[name] for result in results]
            figures |= {
                k: [(r.figures[k], float(r.weight)) for r in passed] for k in passed[0].figures
            }
            if not torch.isfinite(loss):
                self._count_nan(loss)
                return figures
        self.nan_steps = 0
        upkeep = stage.after_step(results)
        return figures | {
            k: [(torch.tensor(v, device=self.device), 1.0)] for k, v in upkeep.items()
        }

    def _train_pass(
        self,
        name: str,
        parts: Sequence[Any],
        results: Sequence[dict[str, StepResult]],
        factor: float,
    ) -> Tensor:
        """One pass over all micro-batches, then a step if loss and gradient are finite.

        Args:
            name: of the pass.
            parts: the micro-batches.
            results: of each of them, by pass; this one's are added.
            factor: of the learning rates.

        Returns:
            the loss over all processes, () float64; NaN where the gradient is not finite.
        """
        optimiser = self.stage.optimisers[name]
        optimiser.zero_grad(set_to_none=True)
        losses: list[Weighted] = []
        unit = 0.0  # the first weight above zero
        for part, earlier in zip(parts, results, strict=True):
            with self._autocast():
                result = self.stage.loss(name, part, earlier)
            weight = weight_of(result.weight, f"{self.stage.name}, pass {name}")
            losses.append((result.loss.detach(), weight))
            unit = unit or weight
            # Relative to the first weight, so that half-precision gradients keep their size.
            scaled = self.scaler.scale(result.loss * (weight / (unit or 1)))
            if weight:  # nothing is learned from nothing
                scaled.backward()
            figures = {key: value.detach() for key, value in result.figures.items()}
            earlier[name] = StepResult(result.loss.detach(), figures, weight, result.kept)
        summed, total_weight = distributed.total(sums(losses))
        loss = summed / total_weight
        if torch.isfinite(loss):
            parameters = [p for group in optimiser.param_groups for p in group["params"]]
            if len(parts) > 1 or self.world_size > 1:
                distributed.sum_gradients(parameters, unit / total_weight)
            self.scaler.unscale_(optimiser)
            grads = [p.grad for p in parameters if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(grads)
            sound = torch.isfinite(norm)
            # A scaler skips an overflow itself, and lowers its scale as long as that may help.
            if sound and self.stage.max_grad_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(parameters, self.stage.max_grad_norm, norm)
            if sound or (self.scaler.is_enabled() and self.scaler.get_scale() > 1):
                for group in optimiser.param_groups:
                    group.setdefault("base_lr", group["lr"])
                    group["lr"] = group["base_lr"] * factor
                self.scaler.step(optimiser)
            else:
                loss = torch.full_like(loss, torch.nan)
            self.scaler.update()
        return loss

    def _autocast(self) -> torch.autocast:
        dtype = AMP_DTYPES.get(self.config.amp)
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def _count_nan(self, loss: Tensor) -> None:
        self.nan_steps += 1
        self.skipped_steps += 1
        log.warning("step %d: loss or gradient is %s, step skipped", self.step + 1, loss.item())
        if self.nan_steps >= MAX_NAN_STEPS:
            raise TrainingError(
                f"{self.stage.name}: the loss was not finite for {MAX_NAN_STEPS} steps in a row, "
                f"up to step {self.step + 1}; {self._kept()}"
            )

    def _kept(self) -> str:
        if self.folder.state.exists():
            return f"{self.folder.state} holds the last checkpoint"
        return f"no checkpoint was written to {self.folder.state}"

    def _validate(self) -> dict[str, float]:
        return {f"held_out_{k}": v for k, v in self.stage.validate(self.held_out).items()}
