"""Where the demo's texts go wrong: reading, points, copying, adding up, or the answer.

    .envs/main/bin/python tests/bench/demo_errors.py runs/demo/seed0/stage1_infer [--world FILE]

Reads the judged texts of an inference over pools of the demo's world, whose scenes it makes again
from the settings. Each share is of the texts in which the part can be read.
"""

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from cot_reward.demo import world
from cot_reward.demo.settings import POOLS, BaseSettings, WorldSettings
from cot_reward.evaluation.finished import judged_rows
from cot_reward.settings import parse_several

REPO = Path(__file__).resolve().parents[2]
SEEN = re.compile(r"Image [12] (\w+) \((\d+)/\d+\)")
SUM = re.compile(r"Image [12]: (\d+)\+(\d+)=(\d+)")


def findings(row: dict[str, Any], scene: world.Scene) -> Iterator[tuple[str, bool]]:
    """(what, whether it is right) for every part of a text that can be read."""
    text = row["conversations"][1]["value"]
    things = scene.things if row["order"] == "given" else scene.things[::-1]
    yield f"right, {scene.kind}", row["verdict"] == "correct"
    seen, sums = SEEN.findall(text), SUM.findall(text)
    if len(seen) != 4:
        return
    for place, (word, points) in enumerate(seen):
        attribute, image = divmod(place, 2)
        words = (world.SHADES, world.SIZES)[attribute]
        name = world.DIMENSIONS[attribute].lower()
        yield f"{name} read", word == words[things[image][attribute]]
        if word in words:
            read = list(scene.wanted)
            read[attribute] = words.index(word)
            due = world.points(scene.wanted, (read[0], read[1]))[attribute]
            yield f"{name} points", int(points) == due
    if len(sums) != 2:
        return
    yield "copied", all(sums[i][:2] == (seen[i][1], seen[2 + i][1]) for i in (0, 1))
    yield "added up", all(int(first) + int(second) == int(total) for first, second, total in sums)
    first, second = (int(total) for *_, total in sums)
    if first != second and row["answer"]:
        yield "answer as the totals say", row["answer"] == 1 + (first < second)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--world", type=Path, default=REPO / "configs/demo/world.yaml")
    chosen = parser.parse_args()
    settings, _ = parse_several((WorldSettings, BaseSettings), "", config=chosen.world, argv=[])
    scenes = {s.name: s for pool in POOLS for s in world.scenes(pool, settings)}
    counts: dict[str, list[bool]] = defaultdict(list)
    for row in judged_rows(chosen.folder):
        name = Path(row["images"][0]).stem.rsplit("_", 1)[0]
        for what, right in findings(row, scenes[name]):
            counts[what].append(right)
    for what, found in counts.items():
        print(f"{what:26} {sum(found) / len(found):6.3f} of {len(found):,}")


if __name__ == "__main__":
    main()
