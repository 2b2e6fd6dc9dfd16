"""TRL's DPO trainer with shared prompts, kept reference log-probs, and figures about single pairs.

TRL's losses and metrics are called as they are. What they average over a micro-batch is here
weighted so that a step is the mean over all pairs of its global batch, however these are spread
over processes and accumulation steps.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, is_peft_model, tqdm
from datasets import Dataset
from torch.utils.data import DataLoader
from trl import DPOTrainer
from trl.models.utils import prepare_deepspeed

from cot_reward.dpo import shared_prefix
from cot_reward.dpo.collator import REFERENCES, first_pairs
from cot_reward.dpo.figures import PairFigures
from cot_reward.dpo.reference import Cache, Logps

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
_OWN_KEYS = ("pairs", "share", "uneven")


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
        # Models that are shared out need the same number of batches everywhere: some rows twice.
        indices += indices[: -len(indices) % world]
        part = dataset.select(indices[rank::world])
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
        counts = []
        for number, batch in enumerate(batches):
            pairs = len(batch["pairs"]["images"])
            real = self._real_pairs(pairs) if number == len(batches) - 1 else pairs
            if real < pairs:
                # Copies that fill the last batch of an epoch go; a process with none but copies
                # runs one, without weight.
                batches[number] = batch = first_pairs(batch, max(real, 1))
            # Every process says the same of the same batch, those that lose no pair, too.
            batch["uneven"] = number == len(batches) - 1 and self._fills_up(pairs)
            tokens = int(batch["completion_mask"].chunk(2)[0].sum())
            counts.append((real, tokens if real else 0))
        own = torch.tensor(counts, dtype=torch.float64, device=device)
        total = self.accelerator.gather(own.sum(dim=0, keepdim=True)).sum(dim=0)
        shares = own * len(batches) * self.accelerator.num_processes / total
        for batch, share in zip(batches, shares.tolist(), strict=True):
            batch["share"] = share
        return batches, items

    def _fills_up(self, pairs: int) -> bool:
        """Whether the current batch, of so many pairs on each process, has copies in it."""
        state = self.accelerator.gradient_state
        total = pairs * self.accelerator.num_processes
        return bool(state.end_of_dataloader and 0 < state.remainder < total)

    def _real_pairs(self, pairs: int) -> int:
        """How many of the current batch's pairs are no copies that only fill it up."""
        if not self._fills_up(pairs):
            return pairs
        # accelerate fills the last global batch in the order of the processes.
        before = self.accelerator.process_index * pairs
        return min(max(self.accelerator.gradient_state.remainder - before, 0), pairs)

    # --- loss -------------------------------------------------------------------------------------
    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        mode = "train" if self.model.training else "eval"
        inputs = dict(inputs)
        pairs, share = inputs.pop("pairs"), inputs.pop("share", None)
        uneven = inputs.pop("uneven", False)
        if REFERENCES[0] not in inputs:
            live = self._reference_logps(self._reference(), inputs)
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
        real = len(pairs["images"])
        if share is not None:
            real = real if share[0] else 0
        elif mode == "eval":
            real = self._real_pairs(real)
        self._figures[mode].add(
            self.beta, recorded.log_probs, inputs, pairs, real, ld_alpha=self.ld_alpha
        )
        return result

    # --- checkpoints ------------------------------------------------------------------------------
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self._stands_whole():
            self._load_weights(resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self._stands_whole():
            self._load_weights(str(self.state.best_model_checkpoint))
        else:
            super()._load_best_model()

    def _stands_whole(self) -> bool:
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
            for key, value in self._figures[mode].take().items():
                # TRL means the means of micro-batches; of pairs that are spread unevenly, these
                # means are the right ones.
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


def _merged(parts: list[dict[str, Logps]]) -> dict[str, Logps]:
    return {row: logps for part in parts for row, logps in part.items()}


def _size(row: dict[str, Any]) -> int:
    """Roughly a row's length, to put rows of one length into one batch."""
    texts = [part["text"] or "" for message in row["prompt"] for part in message["content"]]
    texts += [row[side][0]["content"] for side in ("chosen", "rejected")]
    return sum(map(len, texts)) + 1000 * len(row["image_paths"])
