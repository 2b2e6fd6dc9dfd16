"""Between TRL, which computes by pair, and the model, which runs each response once."""

from typing import Any

import torch

# Keys of a batch that neither TRL nor the model knows.
_OUR_BATCH_KEYS = ("pairs", "images", "share", "real", "answer_mask", "compared_mask", "ref_logps")
# The tensors of a batch by response, which TRL takes by pair.
_BY_RESPONSE = ("input_ids", "attention_mask", "completion_mask")
# What the model's fused head tells of each token.
_OF_TOKENS = ("log_probs", "entropy", "mean_logits", "is_top1", "log_sum_sq_probs", "logits")


class LogProbRecorder:
    """Calls a model on a batch's responses, tells its tokens by pair, and keeps their log-probs.

    TRL's functions take, and find, two rows for each pair. `by_pair` is the batch as they take it;
    when they call this with it, the model gets the batch as it is, each response once.
    Where `compared` (2 x pairs, length - 1) is set, TRL finds 0 as the log-prob of each token that
    it does not have. Kept of the last call: `of_responses` and `log_probs`, of all tokens and
    without a graph, by response and by pair, and `of_tokens`, by pair and with the graph.
    """

    def __init__(self, model: Any, batch: dict[str, Any]) -> None:
        self._model, self._batch = model, batch
        places = batch["pairs"]["responses"].T.flatten()
        in_order = torch.arange(len(batch["completion_mask"]), device=places.device)
        # Most batches have two responses for each pair, in TRL's order.
        self._places = None if torch.equal(places, in_order) else places
        self.compared: torch.Tensor | None = None
        self.of_responses = self.log_probs = self.of_tokens = torch.empty(0)

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor (2 x pairs, ...) from one (responses, ...)."""
        return tensor if self._places is None else tensor[self._places]

    def by_pair(self) -> dict[str, Any]:
        """The batch for TRL's functions."""
        known = {name: self._batch[name] for name in self._batch if name not in _OUR_BATCH_KEYS}
        return known | {name: self.take(self._batch[name]) for name in _BY_RESPONSE}

    def __call__(self, **named: Any) -> Any:
        named |= {name: self._batch[name] for name in ("input_ids", "attention_mask")}
        if "labels" in named:
            is_prompt = self._batch["completion_mask"] == 0
            named["labels"] = self._batch["input_ids"].masked_fill(is_prompt, -100)
        outputs = self._model(**named)
        width = self._batch["completion_mask"].shape[1] - 1
        if "labels" in named:
            # A virtual token of prompt learning, before the others, has no place in the batch.
            self.of_responses = outputs.log_probs[:, -width:].detach()
        for name in _OF_TOKENS:
            if isinstance(of_tokens := getattr(outputs, name, None), torch.Tensor):
                setattr(outputs, name, self.take(of_tokens))
        if "labels" in named:
            self.of_tokens = outputs.log_probs[:, -width:]
            self.log_probs = self.of_tokens.detach()
            if self.compared is not None:
                outputs.log_probs = self.of_tokens * self.compared
        return outputs

    def sft_mean(self, completion_mask: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The mean negative log-prob per token of the chosen texts, of all their tokens.

        A token counts by the `weight` of its pair.
        """
        counts = completion_mask.chunk(2)[0] * weight[:, None]
        return -(self.of_tokens.chunk(2)[0] * counts).sum() / counts.sum()
