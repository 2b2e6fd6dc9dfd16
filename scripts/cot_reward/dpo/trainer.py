"""TRL's DPO trainer with shared prefixes, cached reference log-probs and metrics of single pairs.

TRL's losses and metrics are used unchanged. They average over a micro-batch; here each micro-batch
is weighted so that a step is the mean over all pairs of its global batch, whatever the number of
processes and accumulation steps.
"""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
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
from cot_reward.dpo.collator import GROUP_COLUMNS, REFERENCE_COLUMNS, keep_first_pairs
from cot_reward.dpo.metrics import LossTerm, Metrics, PairMetrics, sequence_logps
from cot_reward.dpo.reference import Logps, ReferenceCache
from cot_reward.errors import UserError
from cot_reward.training.checkpoint_keeper import CheckpointKeeper
from cot_reward.training.distributed import split_evenly
from cot_reward.training.identity import Record

SIDES = ("chosen", "rejected")
# Columns of the rows that reach the collator.
_COLUMNS = ["prompt", "chosen", "rejected", "image_paths", "answer_only", *GROUP_COLUMNS]
_COLUMNS += REFERENCE_COLUMNS
# Keys of a batch that neither TRL nor the model knows.
_OUR_BATCH_KEYS = ("pairs", "share", "real", "answer_mask", "compared_mask", *REFERENCE_COLUMNS[2:])
# An image's part in the approximate length of a row.
_CHARACTERS_PER_IMAGE = 1000


class PairTrainer(CheckpointKeeper, DPOTrainer):
    """DPOTrainer for the rows of `pairs` and the batches of `collator`.

    `record` is what the checkpoints belong to. `shared` says that the batches are from
    SharedPrefixCollator. With a `cache` the reference log-probs are read from it, after the missing
    ones are computed, and no reference model is loaded (under FSDP TRL loads one to compute them).
    """

    # TRL's attributes, which it does not annotate.
    loss_weights: list[Any]
    _precompute_engine: Any

    def __init__(
        self, *, record: Record, shared: bool, cache: ReferenceCache | None, **arguments: Any
    ) -> None:
        self.record, self._shared, self._cache = record, shared, cache
        self.reference_counts = {"found": 0, "computed": 0}
        arguments["args"].precompute_ref_log_probs = cache is not None
        if shared and arguments["args"].ddp_find_unused_parameters is None:
            # Every row has images, so every trained part of these models takes part in every step.
            arguments["args"].ddp_find_unused_parameters = False
        # TRL would hash all weights for its own cache, which takes a minute for a 7B model.
        with mock.patch.object(dpo_trainer, "hash_module", return_value="", create=True):
            super().__init__(**arguments)
        self._pair_metrics = {mode: PairMetrics() for mode in ("train", "eval")}
        self._attach_shared_prefix()
        # TRL's loss then always reads reference log-probs from the batch. Without a cache,
        # `_compute_loss` adds them there.
        self.precompute_ref_logps = True

    def _attach_shared_prefix(self) -> None:
        if not self._shared:
            return
        for model in (self.model, self.ref_model):
            if model is not None:
                plain: Any = self.accelerator.unwrap_model(model)
                shared_prefix.attach(plain.get_base_model() if is_peft_model(plain) else plain)

    # --- rows: TRL must not change them -----------------------------------------------------------
    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = _COLUMNS

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The batch on its device; reference log-probs stay in fp32.

        Under DeepSpeed transformers casts all floats of a batch to the model's precision, and bf16
        rounds a log-prob of -600 to a multiple of 4.
        """
        references = {name: inputs[name] for name in REFERENCE_COLUMNS if name in inputs}
        rest = {name: value for name, value in inputs.items() if name not in references}
        prepared: dict[str, Any] = super()._prepare_inputs(rest)
        return prepared | {name: logps.to(self.args.device) for name, logps in references.items()}

    # --- reference log-probs ----------------------------------------------------------------------
    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """The rows with their reference log-probs; TRL calls it when the model is ready."""
        assert self._cache is not None
        if set(REFERENCE_COLUMNS) <= set(dataset.column_names):
            return dataset
        self._attach_shared_prefix()
        digests: list[str] = dataset["digest"][:]
        # One process may see a file that another does not, and all must do the same work.
        known = _merge(gather_object([self._cache.read()]))
        missing = {digest: index for index, digest in enumerate(digests) if digest not in known}
        self.reference_counts["found"] += len(digests) - len(missing)
        self.reference_counts["computed"] += len(missing)
        if missing:
            # Sorted by digest first, so that rows of equal length have one order in all processes.
            indices = [index for _, index in sorted(missing.items())]
            indices.sort(key=lambda index: _approximate_length(dataset[index]))
            known |= self.compute_reference_logps(dataset, indices, name, batch_size)
        self._cache.close()
        kept = zip(*(known[digest] for digest in digests), strict=True)
        for column, logps in zip(REFERENCE_COLUMNS, kept, strict=True):
            dataset = dataset.add_column(column, list(logps))
        return dataset

    def compute_reference_logps(
        self, dataset: Dataset, indices: list[int], name: str, batch_size: int
    ) -> dict[str, Logps]:
        """Compute the log-probs of these rows on all processes and add them to the cache.

        Returns digest of a row -> its log-probs. Raises UserError for log-probs that are not
        finite.
        """
        assert self._cache is not None
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        part = dataset.select(split_evenly(indices, world)[rank])
        batches = DataLoader(
            part,
            batch_size=batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
        )
        model = self._reference_model()
        computed: dict[str, Logps] = {}
        digests = iter(part["digest"][:])
        for batch in tqdm(
            batches,
            desc=f"Reference log-probs of the {name} rows",
            disable=bool(os.environ.get("TQDM_DISABLE")) or self.args.disable_tqdm,
        ):
            logps = self.reference_logps(model, self._prepare_inputs(batch))
            pairs = [Logps(*row) for row in torch.stack(logps, dim=1).tolist()]
            if not all(math.isfinite(value) for pair in pairs for value in pair):
                raise UserError(
                    "the reference gives log-probs that are not finite; check that the model's "
                    "files are complete and that its precision (--dtype, --bf16) is enough"
                )
            batch_digests = [next(digests) for _ in pairs]
            self._cache.add(batch_digests, pairs)
            computed.update(zip(batch_digests, pairs, strict=True))
        return _merge(gather_object([computed]))

    def _reference_model(self) -> Any:
        """The model for reference log-probs: before the first step, the policy itself."""
        if self.ref_model is None and self.is_deepspeed_enabled:
            # As TRL does: until training starts, the parameters may be on the CPU or sharded.
            if self._precompute_engine is None:
                self._precompute_engine = prepare_deepspeed(self.model, self.accelerator)
            return self._precompute_engine
        return self.ref_model or self.model

    def reference_logps(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        """The log-probs by `model`, in the order of `reference.Logps`, each of shape (pairs,)."""
        known = {name: value for name, value in inputs.items() if name not in _OUR_BATCH_KEYS}
        recorder = LogProbRecorder(model)
        of_texts = self.compute_ref_log_probs(recorder, known)
        mask = inputs["completion_mask"][:, 1:]
        of_tokens = recorder.log_probs[:, -mask.shape[1] :]
        of_parts = [
            sequence_logps(of_tokens * inputs[part][:, 1:], mask, self.ld_alpha).chunk(2)
            for part in ("answer_mask", "compared_mask")
        ]
        return *of_texts, *of_parts[0], *of_parts[1]

    # --- every pair weighs the same ---------------------------------------------------------------
    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of one step, each with its `share` of the step.

        `share` holds two factors, for the micro-batch's mean over pairs and for its mean over
        chosen tokens. With them, accumulation and averaging over processes give the means over the
        global batch.
        """
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, items
        counts = []
        for number, batch in enumerate(batches):
            if number == len(batches) - 1:
                batches[number] = batch = self._drop_repeated_pairs(batch)
            real = batch.get("real", len(batch["pairs"]["images"]))
            tokens = int(batch["completion_mask"].chunk(2)[0].sum())
            counts.append((real, tokens if real else 0))
        local = torch.tensor(counts, dtype=torch.float64, device=device)
        total = self.accelerator.gather(local.sum(dim=0, keepdim=True)).sum(dim=0)
        shares = local * len(batches) * self.accelerator.num_processes / total
        for batch, share in zip(batches, shares.tolist(), strict=True):
            batch["share"] = share
        return batches, items

    def _drop_repeated_pairs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch without the repeated pairs that fill an epoch's last global batch.

        `real` is the number of pairs left. A process that has only repeated pairs keeps one, with
        weight 0. When a global batch was filled, `real` is set on every process.
        """
        state, pairs = self.accelerator.gradient_state, len(batch["pairs"]["images"])
        global_size = pairs * self.accelerator.num_processes
        # accelerate's own `remainder` is lost when a resumed run skips batches.
        rest = len(state.active_dataloader.dataset) % global_size if state.end_of_dataloader else 0
        never_filled = self.accelerator.num_processes == 1 or self.args.dataloader_drop_last
        if never_filled or not rest or "image_grid_thw" not in batch:
            return batch
        # Real pairs come first, in the order of the processes.
        real = min(max(rest - self.accelerator.process_index * pairs, 0), pairs)
        return keep_first_pairs(batch, max(real, 1)) | {"real": real}

    # --- loss -------------------------------------------------------------------------------------
    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        mode = "train" if self.model.training else "eval"
        # In training `get_batch_samples` has already dropped the repeated pairs.
        inputs = dict(inputs if mode == "train" else self._drop_repeated_pairs(inputs))
        pairs, share = inputs.pop("pairs"), inputs.pop("share", None)
        uneven = "real" in inputs
        real = inputs.pop("real", len(pairs["images"]))
        if REFERENCE_COLUMNS[0] not in inputs:
            live = self.reference_logps(self.ref_model or self.model, inputs)
            inputs |= dict(zip(REFERENCE_COLUMNS, live, strict=True))
        known = {name: value for name, value in inputs.items() if name not in _OUR_BATCH_KEYS}
        recorder = LogProbRecorder(model)
        weights = self.loss_weights
        sft_mean = None
        if self.data_collator.preference_tokens != "all":
            recorder.compared = inputs["compared_mask"][:, 1:]
            known |= {f"ref_{side}_logps": inputs[f"ref_{side}_compared_logps"] for side in SIDES}
            # The texts are learned as a whole; TRL's mean is of what the other losses compare.
            sft_mean = partial(recorder.sft_mean, inputs["completion_mask"][:, 1:])
        of_pairs, of_tokens = share or (1.0, 1.0)
        terms = self._loss_terms(of_pairs, of_tokens, sft_mean)
        self.loss_weights = terms
        try:
            with _gather_unequal_lengths(self.accelerator) if uneven else nullcontext():
                result = super()._compute_loss(recorder, known, return_outputs)
        finally:
            self.loss_weights = weights
        loss = result[0] if return_outputs else result
        self._pair_metrics[mode].add(
            self.beta,
            recorder.log_probs,
            inputs,
            pairs,
            real,
            loss=loss.detach(),
            terms=terms,
            ld_alpha=self.ld_alpha,
        )
        return result

    def _loss_terms(
        self,
        pair_share: float,
        token_share: float,
        sft_mean: Callable[[], torch.Tensor] | None = None,
    ) -> list[LossTerm]:
        """The loss's terms, weighted for a micro-batch with these shares of its step."""
        return [
            LossTerm(kind, weight * token_share, sft_mean)
            if kind == "sft"
            else LossTerm(kind, weight * pair_share)
            for kind, weight in zip(self.loss_types, self.loss_weights, strict=True)
        ]

    # --- tokens and FLOPs: `input_ids` of a shared row hold no prompt -----------------------------
    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        """Counts as stock TRL does, by the rows of its shape: a prompt for each response."""
        if "prompt_ids" in inputs:
            inputs = inputs | {"input_ids": inputs["attention_mask"]}
        super()._track_num_input_tokens(inputs)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Of the tokens that are run: a shared prompt once."""
        if "prompt_ids" in inputs:
            prompts = inputs["prompt_ids"]
            run = prompts.numel() + len(prompts) * sum(inputs["widths"])
            inputs = inputs | {"input_ids": torch.empty(run, device="meta")}
        return int(super().floating_point_ops(inputs))

    # --- log --------------------------------------------------------------------------------------
    def add_to_next_log(self, metrics: Metrics) -> None:
        """Have these values, or their mean where there are several, in training's next line."""
        for name, value in metrics.items():
            self._metrics["train"][name].append(value)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        if self._metrics[mode]:
            # TRL averages the means of micro-batches, and transformers the losses of steps. Both
            # are wrong when the sizes differ, as in the last batch and the last step of an epoch.
            # TRL writes these values into `logs`, over its own and over transformers' loss.
            for key, value in self._take_pair_metrics(mode).items():
                self._metrics[mode][key] = [value]
        elif "train_runtime" in logs:
            # The run ends behind an evaluation: the steps since the last line of training's log.
            logs.update(self._take_pair_metrics("train"))
        super().log(logs, start_time)

    def _take_pair_metrics(self, mode: str) -> Metrics:
        return self._pair_metrics[mode].take(self.loss_types, self.loss_weights)


class LogProbRecorder:
    """Calls a model and keeps the `log_probs` of its last output.

    `compared`, a mask of the last tokens, has the output's other log-probs set to 0; `of_tokens`
    then has all of them, with their graph.
    """

    def __init__(self, model: Any, compared: torch.Tensor | None = None) -> None:
        self._model = model
        self.compared = compared
        self.log_probs: torch.Tensor = torch.empty(0)
        self.of_tokens = self.log_probs

    def __call__(self, *args: Any, **named: Any) -> Any:
        outputs = self._model(*args, **named)
        self.log_probs = outputs.log_probs.detach()
        if self.compared is not None:
            # A virtual token of prompt learning, before the others, is not compared.
            of_tokens = outputs.log_probs[:, -self.compared.shape[1] :]
            self.of_tokens, outputs.log_probs = of_tokens, of_tokens * self.compared
        return outputs

    def sft_mean(self, completion_mask: torch.Tensor) -> torch.Tensor:
        """The mean negative log-prob per token of the chosen texts, of all their tokens."""
        chosen = completion_mask.chunk(2)[0].bool()
        return -self.of_tokens.chunk(2)[0][chosen].mean()


@contextmanager
def _gather_unequal_lengths(accelerator: Accelerator) -> Iterator[None]:
    """Let TRL gather its metrics of pairs when processes have unequal numbers of pairs."""
    stock_gather = accelerator.gather

    def gather(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.dim():
            return stock_gather(tensor)
        return torch.cat(gather_object([tensor.cpu()])).to(tensor.device)

    accelerator.gather = gather
    try:
        yield
    finally:
        del accelerator.gather


def _merge(parts: list[dict[str, Logps]]) -> dict[str, Logps]:
    return {digest: logps for part in parts for digest, logps in part.items()}


def _approximate_length(row: dict[str, Any]) -> int:
    """A row's rough length; rows of similar length share a batch."""
    texts = [part["text"] or "" for message in row["prompt"] for part in message["content"]]
    texts += [row[side][0]["content"] for side in ("chosen", "rejected")]
    return sum(map(len, texts)) + _CHARACTERS_PER_IMAGE * len(row["image_paths"])
