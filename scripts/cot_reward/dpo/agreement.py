"""Does the model still answer as its own totals say? Greedy texts, judged at intervals of training.

All other figures of a DPO run are about given texts. Answers that leave their own reasoning, or
that lean to one position, are seen in texts that the model writes itself.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import GenerationConfig, TrainerCallback

from cot_reward.dpo.collator import written
from cot_reward.errors import UserError
from cot_reward.judge import judge
from cot_reward.stats import tally
from cot_reward.tasks import TASKS

_SHARES = ("accuracy", "well_formed", "coherent", "answers_1")
# A text may be so many times as long as the longest chosen one about these prompts; a longer one is
# cut, and counts as not well-formed.
_LENGTH_FACTOR = 2


def choose_prompts(rows: Dataset, count: int) -> Dataset:
    """At most `count` rows of different prompts, evenly spread over `rows`.

    As many have the right answer 1 as 2 (or one more), so that half of the answers of a model
    without a lean are 1. Raises UserError when the right answer of no row is known.
    """
    first: dict[tuple[int, str], int] = {}
    # An answer that cannot be read is 0.
    answers = map(max, rows["answer"][:])
    for index, prompt in enumerate(zip(answers, rows["comparison"][:], strict=True)):
        first.setdefault(prompt, index)
    chosen: list[int] = []
    for answer, wanted in ((1, (count + 1) // 2), (2, count // 2)):
        places = [index for (of_prompt, _), index in first.items() if of_prompt == answer]
        taken = min(wanted, len(places))
        chosen += [places[number * len(places) // taken] for number in range(taken)]
    if not chosen:
        raise UserError(
            "--agreement_steps: of no row the chosen text has an answer that the judge can read, "
            "so that no text of the model could be judged; leave the flag out"
        )
    return rows.select(chosen)


class Agreement(TrainerCallback):
    """Logs `agreement/...` before the first step and every so many optimiser steps.

    The values of `steps` are in the next line of training's log. `trainer` is a PairTrainer, and
    `rows` are of `choose_prompts`. Every process has the whole model and writes its part of the
    texts. Weights and random numbers stay as they are.
    """

    def __init__(self, trainer: Any, steps: int, rows: Dataset) -> None:
        self._trainer, self._steps, self._rows = trainer, steps, rows
        # A tokenizer keeps how it padded last, and is saved with it.
        self._processor = copy.deepcopy(trainer.processing_class)
        self._most_tokens = _LENGTH_FACTOR * max(
            len(self._processor.tokenizer(text)["input_ids"])
            for row in rows
            for text in row["chosen"]
        )

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 0:
            self._trainer.log(self.measure())

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self._steps == 0:
            self._trainer.add_to_next_log(self.measure())

    def measure(self) -> dict[str, float]:
        """Shares of the texts, as in the tables of the evaluation; every process must call it.

        `answers_1` is a share of the well-formed texts, and missing without any.
        """
        accelerator = self._trainer.accelerator
        model: Any = accelerator.unwrap_model(self._trainer.model)
        own = range(accelerator.process_index, len(self._rows), accelerator.num_processes)
        judged: list[dict[str, Any]] = []
        device, size = accelerator.device, self._trainer.args.per_device_eval_batch_size
        was_training = model.training
        model.eval()
        with (
            torch.no_grad(),
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            accelerator.autocast(),
        ):
            for start in range(0, len(own), size):
                numbers = own[start : start + size]
                rows = [self._rows[number] for number in numbers]
                for number, row, text in zip(
                    numbers, rows, self.write_texts(model, rows), strict=True
                ):
                    judged.append(_judged(number, row, *text))
        model.train(was_training)
        metrics = tally(gather_object(judged))
        shares = {name: metrics[name] for name in _SHARES}
        return {f"agreement/{name}": one["share"] for name, one in shares.items() if one["of"]}

    def write_texts(self, model: Any, rows: Sequence[dict[str, Any]]) -> list[tuple[str, bool]]:
        """For each row the model's greedy text, and whether it ended by itself."""
        shown = self._trainer.data_collator.with_images(list(rows))
        inputs = self._processor(
            images=[row["images"] for row in shown],
            text=[written(row, self._processor).prompt for row in rows],
            padding=True,
            padding_side="left",
            return_tensors="pt",
            add_special_tokens=False,
        ).to(self._trainer.accelerator.device)
        tokenizer, ends = self._processor.tokenizer, model.generation_config.eos_token_id
        ends = tokenizer.eos_token_id if ends is None else ends
        # What is left out comes from the model's folder, and published ones have a penalty there.
        greedy = GenerationConfig(
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            max_new_tokens=self._most_tokens,
            use_cache=True,
            eos_token_id=ends,
            pad_token_id=tokenizer.pad_token_id,
        )
        generated = model.generate(**inputs, generation_config=greedy)
        tokens = generated[:, inputs["input_ids"].shape[1] :]
        ended = torch.isin(tokens, torch.tensor(ends, device=tokens.device)).any(dim=1).tolist()
        texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return list(zip(texts, ended, strict=True))


def _judged(number: int, row: dict[str, Any], text: str, ended: bool) -> dict[str, Any]:
    """What `stats.tally` reads of a judged row; each prompt counts by itself."""
    found = judge(
        text,
        TASKS[row["task"]],
        max(row["answer"]),
        "stop" if ended else "length",
        row["form"],
        mismatches=False,
    )
    return {
        "id": str(number),
        "order": "given",
        "sample": 0,
        "verdict": found.verdict,
        "coherence": found.coherence,
        "answer": found.answer,
    }
