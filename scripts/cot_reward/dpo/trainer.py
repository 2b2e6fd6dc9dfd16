"""TRL's DPO trainer with shared prompts, kept reference log-probs, and figures about single pairs.

TRL's losses and metrics are called as they are. What they average over a micro-batch is here
weighted so that a step is the mean over all pairs of its global batch, however these are spread
over processes and accumulation steps.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, is_peft_model, tqdm
from datasets import Dataset
from torch.utils.data import DataLoader
from trl import DPOTrainer
from trl.models.utils import prepare_deepspeed
from trl.trainer import dpo_trainer

from cot_reward.dpo import shared_prefix
from cot_reward.dpo.collator import REFERENCES, first_pairs
from cot_reward.dpo.metrics import PairFigures
from cot_reward.dpo.reference import Cache, Logps
from cot_reward.errors import UserError

_COLUMNS = [
    "prompt",
    "chosen",
    "rejected",
    "image_paths",
    "answer",
    "same_model",
    *REFERENCES,
]
# What a batch has that neither TRL nor the model knows.
_OWN_KEYS = ("pairs", "share", "real")


class PairTrainer(DPOTrainer):
    """DPOTrainer for the rows of `data` and the batches of `collator`.

    `shared` tells that the batches are those of SharedPrefixCollator. With a `cache` the reference
    log-probs are taken from it, those that it lacks computed first, and no reference model is
    loaded (under FSDP TRL loads one for the computing).
    """

    # TRL's own; it does not say their types.
    loss_weights: list[float]
    _precompute_engine: Any

    def __init__(self, *, shared: bool, cache: Cache | None, **arguments: Any) -> None:
        self._shared, self._cache = shared, cache
        self.reference_counts = {"found": 0, "computed": 0}
        self._figures = {"train": PairFigures(), "eval": PairFigures()}
        arguments["args"].precompute_ref_log_probs = cache is not None
        if shared and arguments["args"].ddp_find_unused_parameters is None:
            # Every row has images, so that no trained part of these models is ever left out.
            arguments["args"].ddp_find_unused_parameters = False
        # TRL would hash all weights for a cache of its own: a minute of a 7B model's start.
        with mock.patch.object(dpo_trainer, "hash_module", return_value="", create=True):
            super().__init__(**arguments)
        self._attach()
        # Live ones are computed by `_compute_loss` below, so that there is one way to a loss.
        self.precompute_ref_logps = True

    def _attach(self) -> None:
        if not self._shared:
            return
        for model in (self.model, self.ref_model):
            if model is not None:
                plain: Any = self.accelerator.unwrap_model(model)
                shared_prefix.attach(plain.get_base_model() if is_peft_model(plain) else plain)

    # --- rows: TRL is to take them as they are ----------------------------------------------------
    def _prepare_dataset(self, dataset: Any, *others: Any, **named: Any) -> Any:
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = _COLUMNS

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The batch on its device; reference log-probs stay in fp32.

        Under DeepSpeed transformers casts all floats of a batch to the model's precision, and in
        bf16 a log-prob of -600 is known to the nearest 4 only.
        """
        kept = {name: inputs[name] for name in REFERENCES if name in inputs}
        others = {name: value for name, value in inputs.items() if name not in kept}
        ready: dict[str, Any] = super()._prepare_inputs(others)
        return ready | {name: value.to(self.args.device) for name, value in kept.items()}

    # --- reference log-probs ----------------------------------------------------------------------
    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """The rows with their reference log-probs; TRL calls it when the model is ready."""
        assert self._cache is not None
        if set(REFERENCES) <= set(dataset.column_names):
            return dataset
        self._attach()
        rows: list[str] = dataset["digest"][:]
        # One process may see a file that another does not, and all must do the same work.
        known = _merged(gather_object([self._cache.read()]))
        missing = sorted({row: index for index, row in enumerate(rows) if row not in known}.items())
        self.reference_counts["found"] += len(rows) - len(missing)
        self.reference_counts["computed"] += len(missing)
        if missing:
            indices = sorted((index for _, index in missing), key=lambda i: _size(dataset[i]))
            known |= self._computed(dataset, indices, name, batch_size)
        self._cache.close()
        chosen, rejected = zip(*(known[row] for row in rows), strict=True)
        for column, values in zip(REFERENCES, (chosen, rejected), strict=True):
            dataset = dataset.add_column(column, list(values))
        return dataset

    def _computed(
        self, dataset: Dataset, indices: list[int], name: str, batch_size: int
    ) -> dict[str, Logps]:
        """Compute and keep the log-probs of these rows, spread over the processes."""
        assert self._cache is not None
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        part = dataset.select(spread(indices, world)[rank])
        batches = DataLoader(
            part,
            batch_size=batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
        )
        model = self._reference()
        found: dict[str, Logps] = {}
        waiting = iter(part["digest"][:])
        for batch in tqdm(
            batches,
            desc=f"Reference log-probs of the {name} rows",
            disable=bool(os.environ.get("TQDM_DISABLE")) or self.args.disable_tqdm,
        ):
            logps = self._reference_logps(model, self._prepare_inputs(batch))
            values = list(zip(*(side.tolist() for side in logps), strict=True))
            if not all(math.isfinite(value) for pair in values for value in pair):
                raise UserError(
                    "the reference gives log-probs that are not finite; is the model whole, and "
                    "its precision (--dtype, --bf16) enough?"
                )
            rows = [next(waiting) for _ in values]
            self._cache.add(rows, values)
            found.update(zip(rows, values, strict=True))
        return _merged(gather_object([found]))

    def _reference(self) -> Any:
        """What computes reference log-probs: before the first step, the policy itself."""
        if self.ref_model is None and self.is_deepspeed_enabled:
            # As TRL does: its parameters are elsewhere, or in parts, until training starts.
            if self._precompute_engine is None:
                self._precompute_engine = prepare_deepspeed(self.model, self.accelerator)
            return self._precompute_engine
        return self.ref_model or self.model

    def _reference_logps(self, model: Any, inputs: dict[str, Any]) -> Any:
        own = {name: value for name, value in inputs.items() if name not in _OWN_KEYS}
        return self.compute_ref_log_probs(model, own)

    # --- every pair weighs the same ---------------------------------------------------------------
    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of one step, each with its `share` of the step.

        `share` is what the mean over the micro-batch's pairs, and that over its chosen tokens, is
        to be multiplied by, so that accumulation and averaging over processes give the mean over
        the global batch.
        """
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, items
        counts = []
        for number, batch in enumerate(batches):
            if number == len(batches) - 1:
                batches[number] = batch = self._without_copies(batch)
            real = batch.get("real", len(batch["pairs"]["images"]))
            tokens = int(batch["completion_mask"].chunk(2)[0].sum())
            counts.append((real, tokens if real else 0))
        own = torch.tensor(counts, dtype=torch.float64, device=device)
        total = self.accelerator.gather(own.sum(dim=0, keepdim=True)).sum(dim=0)
        shares = own * len(batches) * self.accelerator.num_processes / total
        for batch, share in zip(batches, shares.tolist(), strict=True):
            batch["share"] = share
        return batches, items

    def _without_copies(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch without the pairs that only fill up an epoch's last global batch.

        `real` is how many are left; a process with none but copies keeps one, without weight. The
        batch then says so on every process, also where nothing had to go.
        """
        state, pairs = self.accelerator.gradient_state, len(batch["pairs"]["images"])
        whole = pairs * self.accelerator.num_processes
        # accelerate's own `remainder` is lost when a resumed run skips batches.
        rest = len(state.active_dataloader.dataset) % whole if state.end_of_dataloader else 0
        alone = self.accelerator.num_processes == 1 or self.args.dataloader_drop_last
        if alone or not rest or "image_grid_thw" not in batch:
            return batch
        # The last global batch is filled in the order of the processes.
        real = min(max(rest - self.accelerator.process_index * pairs, 0), pairs)
        return first_pairs(batch, max(real, 1)) | {"real": real}

    # --- loss -------------------------------------------------------------------------------------
    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        mode = "train" if self.model.training else "eval"
        inputs = dict(inputs if mode == "train" else self._without_copies(inputs))
        pairs, share = inputs.pop("pairs"), inputs.pop("share", None)
        uneven = "real" in inputs
        real = inputs.pop("real", len(pairs["images"]))
        if REFERENCES[0] not in inputs:
            live = self._reference_logps(self.ref_model or self.model, inputs)
            inputs |= dict(zip(REFERENCES, live, strict=True))
        recorded = _Recorder(model)
        weights = self.loss_weights
        if share is not None:
            of_pairs, of_tokens = share
            self.loss_weights = [
                weight * (of_tokens if kind == "sft" else of_pairs)
                for kind, weight in zip(self.loss_types, weights, strict=True)
            ]
        try:
            with _uneven_gathers(self.accelerator) if uneven else nullcontext():
                result = super()._compute_loss(recorded, inputs, return_outputs)
        finally:
            self.loss_weights = weights
        loss = result[0] if return_outputs else result
        self._figures[mode].add(
            self.beta,
            recorded.log_probs,
            inputs,
            pairs,
            real,
            loss=loss.detach(),
            sft_weight=self._weight_of_sft(),
            ld_alpha=self.ld_alpha,
        )
        return result

    def _weight_of_sft(self) -> float:
        """That of the mean over chosen tokens in the loss, where pairs do not weigh it anew."""
        kinds = zip(self.loss_types, self.loss_weights, strict=True)
        return 0.0 if self.use_weighting else sum(w for kind, w in kinds if kind == "sft")

    # --- checkpoints ------------------------------------------------------------------------------
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self._is_unsharded():
            self._load_weights(resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self._is_unsharded():
            self._load_weights(str(self.state.best_model_checkpoint))
        else:
            super()._load_best_model()

    def _is_unsharded(self) -> bool:
        """Whether a checkpoint has all weights, under the names that `save_pretrained` gives."""
        shared_out = self.is_deepspeed_enabled or self.is_fsdp_enabled
        return not (shared_out or is_peft_model(self.model))

    def _load_weights(self, folder: str) -> None:
        # transformers' Trainer looks for the names that the weights have in memory, finds none of
        # them, and goes on with what the model had before, with a warning
        # (huggingface/transformers issue 43701).
        saved = type(self.model).from_pretrained(folder, dtype=self.model.dtype)
        self.model.load_state_dict(saved.state_dict())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        if self._metrics[mode]:
            # TRL means the means of micro-batches; where these are not of one size, the means over
            # pairs are the right ones.
            found = self._figures[mode].take()
            if mode == "eval" and "eval_loss" in logs and "loss" in found:
                logs["eval_loss"] = found["loss"]
            for key, value in found.items():
                if key != "loss":
                    self._metrics[mode][key] = [value]
        super().log(logs, start_time)


class _Recorder:
    """Calls a model and keeps the log-probs that it gave."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.log_probs: torch.Tensor = torch.empty(0)

    def __call__(self, *args: Any, **named: Any) -> Any:
        outputs = self._model(*args, **named)
        self.log_probs = outputs.log_probs.detach()
        return outputs


@contextmanager
def _uneven_gathers(accelerator: Accelerator) -> Iterator[None]:
    """Let TRL gather its figures of pairs from processes that have not the same number of them."""
    even = accelerator.gather

    def gather(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.dim():
            return even(tensor)
        return torch.cat(gather_object([tensor.cpu()])).to(tensor.device)

    accelerator.gather = gather
    try:
        yield
    finally:
        del accelerator.gather


def spread(indices: list[int], processes: int) -> list[list[int]]:
    """The rows of each process, equally many; where they do not divide, some come twice.

    A model that is shared out waits for all processes at every batch.
    """
    filled = indices + [indices[n % len(indices)] for n in range(-len(indices) % processes)]
    return [filled[rank::processes] for rank in range(processes)]


def _merged(parts: list[dict[str, Logps]]) -> dict[str, Logps]:
    return {row: logps for part in parts for row, logps in part.items()}


def _size(row: dict[str, Any]) -> int:
    """Roughly a row's length, to put rows of one length into one batch."""
    texts = [part["text"] or "" for message in row["prompt"] for part in message["content"]]
    texts += [row[side][0]["content"] for side in ("chosen", "rejected")]
    return sum(map(len, texts)) + 1000 * len(row["image_paths"])
