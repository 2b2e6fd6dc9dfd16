"""A dry run: images are opened and requests counted, and nothing is sent or written."""

import json
import sys
from dataclasses import replace
from itertools import chain
from typing import Any

from cot_reward.client import wire
from cot_reward.client.wire import Request
from cot_reward.inference import messages
from cot_reward.inference.finish import held_out_counts
from cot_reward.inference.ledger import Ledger
from cot_reward.inference.media_check import records_with_bad_media
from cot_reward.inference.plan import Run
from cot_reward.inference.settings import InferenceSettings
from cot_reward.inference.start import check_bad_records, resume, sampling_of, warn_of_held_out
from cot_reward.inference.structured import forced_forms
from cot_reward.media.paths import MediaError
from cot_reward.media.sent import MediaReader


def dry_run(settings: InferenceSettings) -> int:
    """Open the images, print the counts, the bad records and the first request without its bytes.

    Sends and writes nothing. Returns the exit code that a run would have; raises UserError.
    """
    with Ledger(None) as ledger:
        run = Run(settings, ledger)
        warn_of_held_out(run)
        bad_media = list(records_with_bad_media(ledger, run.roots, settings.image_max_pixels))
        reasons = messages.tell_bad_records(chain(ledger.bad(), bad_media))
        will_fail = run.bad_units + len(bad_media) * settings.units_per_record
        journal, last_settings = settings.out / "journal.jsonl", settings.out / "settings.json"
        if journal.exists() and last_settings.exists():
            resume(run, settings.model, judging=False)
        judged, failed = run.progress()
        units = requests = 0
        first = None
        for request in filter(None, run.requests()):
            first = first or request
            units, requests = units + request.count, requests + 1
        print(json.dumps({
            "records": ledger.record_count, "bad_records": reasons.total(),
            "bad_record_reasons": dict(reasons), "ties": ledger.tie_count,
            "duplicates": ledger.duplicate_count,
            "comparisons": len(ledger), **held_out_counts(run),
            "unit": "expected to will_fail are responses: samples of a comparison in an order",
            "expected": run.expected_units + run.excluded_units, "judged": judged,
            "failed": failed, **({"excluded": run.excluded_units} if run.held_out else {}),
            "to_ask": units,
            **({"to_ask_at_most": run.most_units(judged, failed)} if run.rule.sides else {}),
            "will_fail": will_fail,
            "requests": requests, "template_hashes": run.template_hashes,
        }, indent=2))  # fmt: skip
        if first is not None:
            print(json.dumps(_readable_body(run, first), indent=2, ensure_ascii=False))
        check_bad_records(run, bad_media)
        if will_fail > settings.max_failed * run.expected_units:
            print(
                f"error: {will_fail} of {run.expected_units} responses would fail, more than "
                f"--max-failed {settings.max_failed:g}",
                file=sys.stderr,
            )
            return 3
        return 0


def _readable_body(run: Run, request: Request) -> Any:
    """The body of a request, with the size of each image, or its error, in place of its bytes."""
    settings = run.settings
    reader = MediaReader(settings.image_max_pixels, cache_dir=None)
    urls = []
    for path in request.media:
        try:
            file = run.roots.file(path)
            _, data, mime = reader.read(file)
            url = f"data:{mime};base64,({len(data):,} bytes of {path})"
        except MediaError as error:
            url = f"({error})"
        urls.append([json.dumps(url).encode()])
    sampling = sampling_of(settings, settings.model or "(the one that the server lists)")
    if settings.structured_output != "off":
        # Whether the chat template opens <think> is found out when the server is asked.
        sampling = replace(sampling, by_task=forced_forms(settings.form, run.templates))
    content = wire.content(request.prompt, urls)
    task = request.comparison.task
    return json.loads(wire.body(content, sampling, request.count, request.seed, task=task))
