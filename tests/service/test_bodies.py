"""Bodies that are made to cost more than they weigh."""

import pytest
from cot_reward.service.bodies import RankBody, parse
from cot_reward.service.refusals import RefusalError


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"prompt": "x", "candidates": [' + b"1," * 50_000 + b"1]}", "bad_request"),
        (b'{"prompt": "x", "candidates": [[' + b"1," * 50_000 + b"1]]}", "bad_request"),
        (b'{"prompt": "x", "candidates": [' + b'"a",' * 100_000 + b'"a"]}', "too_many"),
        (b"{" + b",".join(b'"%d": 1' % n for n in range(90_000)) + b"}", "too_many"),
    ],
)
def test_a_body_of_many_parts_is_refused_by_its_first(body, kind):
    with pytest.raises(RefusalError) as caught:
        parse(RankBody, body)
    assert (caught.value.status, caught.value.kind) == (422, kind)
    # Every wrong item would be an error of its own.
    assert "; and " not in caught.value.message
