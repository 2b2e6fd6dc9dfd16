"""TRL's DPO trainer with shared prefixes, cached reference log-probs and metrics of single pairs.

TRL's losses and metrics are used unchanged. They average over a micro-batch; here each micro-batch
is weighted so that a step is the mean over all pairs of its global batch, by their weights,
whatever the number of processes and accumulation steps.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, is_peft_model, tqdm
from datasets import Dataset
from torch.utils.data import DataLoader
from trl import DPOTrainer
from trl.models.utils import prepare_deepspeed
from trl.trainer import dpo_trainer

from cot_reward.dpo import shared_prefix
from cot_reward.dpo.collator import keep_first_rows
from cot_reward.dpo.groups import LABELS, SIDES, Row, digests_of, part_with
from cot_reward.dpo.loss_terms import LossTerm, WeightedMeans
from cot_reward.dpo.metrics import Metrics, PairMetrics, sequence_logps
from cot_reward.dpo.preference_tokens import uncertain_mask
from cot_reward.dpo.recorder import LogProbRecorder
from cot_reward.dpo.reference import Logps, ReferenceCache
from cot_reward.errors import UserError
from cot_reward.training.checkpoint_keeper import CheckpointKeeper
from cot_reward.training.distributed import split_evenly
from cot_reward.training.identity import Record

# Columns of the rows that reach the collator.
_COLUMNS = ["prompt", "image_paths", "pairs", *LABELS]
_COLUMNS += [f"{side}{kind}" for side in SIDES for kind in ("", "_digests")]
# An image's part in the approximate length of a row.
_CHARACTERS_PER_IMAGE = 1000


class PairTrainer(CheckpointKeeper, DPOTrainer):
    """DPOTrainer for the rows of `groups` and the batches of `collator`.

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
        datasets = (self.train_dataset, self.eval_dataset)
        pairs_of_rows = [pairs for rows in datasets if rows for pairs in rows["pairs"][:]]
        self._has_groups = any(len(pairs) > 1 for pairs in pairs_of_rows)
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
        kept = {name: inputs[name] for name in ("ref_logps",) if name in inputs}
        rest = {name: value for name, value in inputs.items() if name not in kept}
        prepared: dict[str, Any] = super()._prepare_inputs(rest)
        return prepared | {name: value.to(self.args.device) for name, value in kept.items()}

    # --- reference log-probs ----------------------------------------------------------------------
    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """Give the collator the texts' reference log-probs; TRL calls it, with the model ready."""
        assert self._cache is not None
        reference: dict[str, Logps] = self.data_collator.reference
        texts = {digest for row in dataset for digest in digests_of(row)} - reference.keys()
        if not texts:
            return dataset
        self._attach_shared_prefix()
        found = self._cache.read(texts)
        # One process may see a file that another does not, and all must do the same work.
        everywhere: set[str] = set.intersection(*gather_object([set(found)]))
        missing = texts - everywhere
        self.reference_counts["found"] += len(everywhere)
        self.reference_counts["computed"] += len(missing)
        reference |= {digest: found[digest] for digest in everywhere}
        if missing:
            rows = Dataset.from_list(_rows_with(dataset, missing))
            reference |= self.compute_reference_logps(rows, name, batch_size)
        self._cache.close()
        return dataset

    def compute_reference_logps(
        self, dataset: Dataset, name: str, batch_size: int
    ) -> dict[str, Logps]:
        """Compute the log-probs of these rows' texts on all processes and add them to the cache.

        Returns digest of a text -> its log-probs. Raises UserError for log-probs that are not
        finite.
        """
        assert self._cache is not None
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        part = dataset.select(split_evenly(list(range(len(dataset))), world)[rank])
        batches = DataLoader(
            part,
            batch_size=batch_size,
            collate_fn=self.data_collator.with_digests,
            num_workers=self.args.dataloader_num_workers,
        )
        model = self._reference_model()
        computed: dict[str, Logps] = {}
        for batch in tqdm(
            batches,
            desc=f"Reference log-probs of the {name} rows",
            disable=bool(os.environ.get("TQDM_DISABLE")) or self.args.disable_tqdm,
        ):
            digests = batch.pop("digests")
            logps = self.reference_logps(model, self._prepare_inputs(batch)).float().cpu()
            masks = batch["completion_mask"][:, 1:].bool()
            of_texts = {
                digest: of_row[mask].numpy()
                for digest, of_row, mask in zip(digests, logps, masks, strict=True)
                if digest and digest not in computed
            }
            if not all(np.isfinite(values).all() for values in of_texts.values()):
                raise UserError(
                    "the reference gives log-probs that are not finite; check that the model's "
                    "files are complete and that its precision (--dtype, --bf16) is enough"
                )
            self._cache.add(of_texts.items())
            computed |= of_texts
        return _merge(gather_object([computed]))

    def _reference_model(self) -> Any:
        """The model for reference log-probs: before the first step, the policy itself."""
        if self.ref_model is None and self.is_deepspeed_enabled:
            # As TRL does: until training starts, the parameters may be on the CPU or sharded.
            if self._precompute_engine is None:
                self._precompute_engine = prepare_deepspeed(self.model, self.accelerator)
            return self._precompute_engine
        return self.ref_model or self.model

    def reference_logps(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """The log-probs by `model` of the batch's tokens but the first, (responses, length - 1)."""
        recorder = LogProbRecorder(model, inputs)
        self.compute_ref_log_probs(recorder, recorder.by_pair())
        return recorder.of_responses

    # --- every pair counts by its weight ----------------------------------------------------------
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
        sums = []
        for number, batch in enumerate(batches):
            if number == len(batches) - 1:
                batches[number] = batch = self._drop_repeated_rows(batch)
            weight, chosen = batch["pairs"]["weight"], batch["pairs"]["responses"][:, 0]
            tokens = batch["completion_mask"].sum(dim=1)[chosen]
            is_real = batch.get("real", 1) > 0
            sums.append([float(weight.sum()) * is_real, float((weight * tokens).sum()) * is_real])
        local = torch.tensor(sums, dtype=torch.float64, device=device)
        total = self.accelerator.gather(local.sum(dim=0, keepdim=True)).sum(dim=0)
        shares = local * len(batches) * self.accelerator.num_processes / total
        for batch, share in zip(batches, shares.tolist(), strict=True):
            batch["share"] = share
        return batches, items

    def _drop_repeated_rows(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch without the repeated rows that fill an epoch's last global batch.

        `real` is the number of rows left. A process that has only repeated rows keeps one, with
        weight 0. When a global batch was filled, `real` is set on every process.
        """
        if "image_grid_thw" not in batch:
            return batch
        state, rows = self.accelerator.gradient_state, int(batch["pairs"]["row"].max()) + 1
        global_size = rows * self.accelerator.num_processes
        # accelerate's own `remainder` is lost when a resumed run skips batches.
        rest = len(state.active_dataloader.dataset) % global_size if state.end_of_dataloader else 0
        never_filled = self.accelerator.num_processes == 1 or self.args.dataloader_drop_last
        if never_filled or not rest:
            return batch
        # Real rows come first, in the order of the processes.
        real = min(max(rest - self.accelerator.process_index * rows, 0), rows)
        return keep_first_rows(batch, max(real, 1)) | {"real": real}

    # --- loss -------------------------------------------------------------------------------------
    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        mode = "train" if self.model.training else "eval"
        # In training `get_batch_samples` has already dropped the repeated rows.
        inputs = dict(inputs if mode == "train" else self._drop_repeated_rows(inputs))
        if "ref_logps" not in inputs:
            if self._cache is not None:
                raise RuntimeError("a text has no reference log-probs; were its rows prepared?")
            inputs["ref_logps"] = self.reference_logps(self.ref_model or self.model, inputs)
        recorder = LogProbRecorder(model, inputs)
        known = recorder.by_pair()
        reference, mask = recorder.take(inputs["ref_logps"]), known["completion_mask"][:, 1:]
        answer = recorder.take(inputs["answer_mask"])[:, 1:]
        if "compared_mask" in inputs:
            recorder.compared = inputs["compared_mask"][:, 1:]
        elif self.data_collator.preference_tokens == "uncertain":
            answer_only = inputs["pairs"]["answer_only"]
            recorder.compared = uncertain_mask(reference, mask, answer, answer_only)
        compared = reference if recorder.compared is None else reference * recorder.compared
        sums = sequence_logps(compared, mask, self.ld_alpha).chunk(2)
        known |= {f"ref_{side}_logps": of_side for side, of_side in zip(SIDES, sums, strict=True)}
        weight = inputs["pairs"]["weight"]
        is_weighted = bool((weight != weight[0]).any())
        sft_mean = None
        if is_weighted or recorder.compared is not None:
            # The texts are learned as a whole; TRL's mean is of what the other losses compare.
            sft_mean = partial(recorder.sft_mean, mask, weight)
        of_pairs, of_tokens = inputs.get("share", (1.0, 1.0))
        terms = self._loss_terms(of_pairs, of_tokens, sft_mean)
        weights, self.loss_weights = self.loss_weights, terms
        # TRL gathers by pair, and processes may have unequal numbers of pairs.
        is_uneven = "real" in inputs or self._has_groups
        try:
            with (
                _gather_unequal_lengths(self.accelerator) if is_uneven else nullcontext(),
                WeightedMeans(weight) if is_weighted else nullcontext(),
            ):
                result = super()._compute_loss(recorder, known, return_outputs)
        finally:
            self.loss_weights = weights
        if inputs.get("real", 1):
            self._pair_metrics[mode].add(
                self.beta,
                recorder.log_probs,
                reference,
                {"mask": mask, "answer": answer},
                inputs["pairs"],
                loss=(result[0] if return_outputs else result).detach(),
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
            both = inputs["pairs"]["responses"].T.flatten()
            inputs = inputs | {"input_ids": inputs["attention_mask"][both]}
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


def _rows_with(dataset: Dataset, wanted: set[str]) -> list[Row]:
    """Rows that have each wanted text once, sorted by length, so that a batch has little padding.

    They have at most the texts of a row of `dataset`.
    """
    left, rows = set(wanted), []
    for row in dataset:
        if part := part_with(row, left):
            rows.append(part)
            left.difference_update(digests_of(part))
    # By digest first, so that rows of equal length have one order in all processes.
    return sorted(rows, key=lambda row: (_approximate_length(row), digests_of(row)))


def _approximate_length(row: Row) -> int:
    texts = [part["text"] or "" for message in row["prompt"] for part in message["content"]]
    texts += [text for side in SIDES for text in row[side]]
    return sum(map(len, texts)) + _CHARACTERS_PER_IMAGE * len(row["image_paths"])
