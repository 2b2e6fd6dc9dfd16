"""Best of N: rank the candidates of many prompts with a served reward model, and name the best.

    python scripts/score.py --data prompts.jsonl --candidates images --out runs/scored
    python scripts/score.py --data lists.jsonl --votes 4 --max-comparisons 12 --out runs/scored

A row of --data has `prompt` and, where it likes, `id`, `context` (pictures that a question or an
edit is about) and `reference`. Its candidates are `candidates`, a list of paths (videos: of lists
of frames; answers: of texts), or else the pictures in the folder CANDIDATES/ID. Writes scores.jsonl
(a row a candidate), best.jsonl (a row a prompt) and summary.json; the same command continues a
stopped run. Exit status: 0 done, 1 or 3 too much failed, 2 wrong input, 130 stopped.
"""

import os

from cot_reward import errors, settings
from cot_reward.reward.settings import RewardSettings, ScoreSettings


def main() -> int:
    chosen, asked = settings.parse_several((ScoreSettings, RewardSettings), __doc__ or "")
    from cot_reward.reward.score import score  # NumPy and Pillow, which --help does not need

    return score(chosen, asked, api_key=os.environ.get(chosen.api_key_env, ""))


if __name__ == "__main__":
    errors.run_script(main)
