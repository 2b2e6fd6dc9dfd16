"""TRL's GRPO trainer with the judge as its reward, and checkpoints that a run can go on from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch.utils.data import Sampler
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from cot_reward.errors import UserError
from cot_reward.grpo.reward import is_well_formed, reward_of
from cot_reward.grpo.settings import GrpoSettings
from cot_reward.judge import judge
from cot_reward.records import Verdict
from cot_reward.tasks import TASKS
from cot_reward.training.checkpoint_keeper import CheckpointKeeper
from cot_reward.training.identity import Record
from cot_reward.training.rows import open_image, without_null_keys

# So many texts show whether the model answers in the asked form at all.
FIRST_TEXTS = 64
_END_SHOWN = 200


class JudgedTrainer(CheckpointKeeper, GRPOTrainer):
    """GRPOTrainer for the rows of `questions`: images are opened batch by batch.

    `record` is what the checkpoints belong to. The rewards are those of `reward`: `judged`, and
    `well_formed` with the weight `reward_format`; at 0 it is only logged.
    """

    # TRL's attributes, which it does not annotate.
    eos_token_ids: list[int]
    train_dataset: Dataset

    def __init__(self, *, record: Record, settings: GrpoSettings, **arguments: Any) -> None:
        self.record, self._settings = record, settings
        self._texts = self._parsed = 0
        self._verdicts: list[Verdict] = []
        arguments["args"].reward_weights = [1.0, settings.reward_format]
        # A prompt is continued at its right end, so that TRL needs the padding at the left.
        tokenizer = arguments["processing_class"].tokenizer
        self._padding_side, tokenizer.padding_side = tokenizer.padding_side, "left"
        super().__init__(reward_funcs=[self.judged, self.well_formed], **arguments)
        # TRL gives its own collator to the Trainer, and has no argument for another one.
        self.data_collator = QuestionCollator(
            Path(settings.image_folder), settings.image_max_pixels
        )

    def restore_tokenizer(self) -> None:
        """Pad as the base does again, before the tokenizer is saved with the model."""
        tokenizer = self.processing_class.tokenizer
        tokenizer.padding_side = self._padding_side
        # The last batch's padding would be saved in tokenizer.json, and set the side when loaded.
        tokenizer.backend_tokenizer.no_padding()

    # --- rewards: TRL logs each by the name of its function ---------------------------------------
    def judged(
        self,
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        task: Sequence[str],
        label: Sequence[int],
        **_: Any,
    ) -> list[float]:
        """1 for a right and coherent text. TRL calls it first, and then `well_formed`."""
        texts = [completion[0]["content"] for completion in completions]
        ended = [bool(ids) and ids[-1] in self.eos_token_ids for ids in completion_ids]
        self._verdicts = [
            judge(text, TASKS[name], right, "stop" if end else "length", mismatches=False)
            for text, name, right, end in zip(texts, task, label, ended, strict=True)
        ]
        self._check_first_texts(texts)
        return [reward_of(verdict, self._settings.reward_incoherent) for verdict in self._verdicts]

    def well_formed(self, **_: Any) -> list[float]:
        """1 for a text of the asked form, right or wrong."""
        return [float(is_well_formed(verdict)) for verdict in self._verdicts]

    def _check_first_texts(self, texts: Sequence[str]) -> None:
        """Raise UserError when hardly any of the first texts has a readable answer.

        All their rewards would be 0, and the run would seem to train.
        """
        if self._texts >= FIRST_TEXTS:
            return
        self._texts += len(texts)
        self._parsed += sum(map(is_well_formed, self._verdicts))
        least = self._settings.min_parsed
        if self._texts < FIRST_TEXTS or self._parsed >= least * self._texts:
            return
        cut = sum(verdict.verdict == "truncated" for verdict in self._verdicts)
        why = (
            f"{cut} of the last {len(texts)} were cut by --max_completion_length "
            f"{self.args.max_completion_length}: raise it"
            if cut > len(texts) / 2
            else "is the prompt the one that the model was trained on (--template)?"
        )
        raise UserError(
            f"{self._parsed} of the first {self._texts} texts have a readable answer, less than "
            f"--min_parsed {least:g}: nearly all rewards would be 0; {why} The end of a text: "
            f"{texts[0][-_END_SHOWN:]!r}"
        )

    # --- order of the questions -------------------------------------------------------------------
    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler:
        stock = super()._get_train_sampler(dataset)
        return EpochSampler(
            data_source=stock.data_source,
            mini_repeat_count=stock.mini_repeat_count,
            batch_size=stock.batch_size,
            repeat_count=stock.repeat_count,
            shuffle=stock.shuffle,
            seed=stock.seed,
        )


class EpochSampler(RepeatSampler):
    """TRL's sampler, whose order of an epoch depends on seed and epoch alone.

    TRL's own begins with the first epoch's order again when a run is resumed in a later epoch.
    """

    def set_epoch(self, epoch: int) -> None:
        """Accelerate calls it before each epoch."""
        if self.shuffle:
            self.generator.manual_seed(self.seed + epoch)


@dataclass
class QuestionCollator:
    """A batch of rows of `questions` as TRL takes it: a list of rows, each with its `images`."""

    image_folder: Path
    image_max_pixels: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Each image is opened once: a question stands in a batch as often as it is sampled."""
        paths = {path for row in rows for path in row["image_paths"]}
        images = {
            path: open_image(path, self.image_folder, self.image_max_pixels)
            for path in sorted(paths)
        }
        return [
            {
                "prompt": without_null_keys(row["prompt"]),
                "images": [images[path] for path in row["image_paths"]],
                "task": row["task"],
                "label": row["label"],
            }
            for row in rows
        ]
