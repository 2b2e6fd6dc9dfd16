"""--structured-output: the grammar of each task of a run, as the server can take it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cot_reward.client.server import Server, ServerError
from cot_reward.client.structured import check_accepted, forced, template_opens_think
from cot_reward.client.wire import Sampling
from cot_reward.errors import UserError
from cot_reward.judge.grammar import JSON_MEMBERS, grammar
from cot_reward.records import Form
from cot_reward.tasks import TASKS


def forced_forms(
    form: Form, templates: Mapping[str, str], opened: bool = False
) -> dict[str, dict[str, Any]]:
    """task -> the further fields of its requests. `templates` is task -> prompt template.

    `opened`: the chat template writes <think>. Raises UserError for a prompt that asks for other
    JSON than the grammar.
    """
    for task, template in templates.items():
        missing = [name for name in JSON_MEMBERS if f'"{name}"' not in template]
        if form == "json" and missing:
            raise UserError(
                f'--structured-output: the template of {task} shows no "{missing[0]}", which the '
                "JSON of the project's own prompt has, and which would be forced on the model; "
                "leave --structured-output out"
            )
    return {task: forced(grammar(form, TASKS[task], opened)) for task in templates}


async def with_forced_forms(
    server: Server, sampling: Sampling, form: Form, templates: Mapping[str, str]
) -> Sampling:
    """The sampling with the grammars, once the server has shown that it forces such.

    Raises ServerError.
    """
    opened = await template_opens_think(server, sampling)
    if opened and form != "think":
        raise ServerError(
            f"{server.base_url}: the chat template opens <think>, and a text of --form {form} has "
            "no such block: with --structured-output the model could not close it. Close it by "
            "--chat-template-kwargs '{\"enable_thinking\": false}', or leave --structured-output "
            "out"
        )
    by_task = forced_forms(form, templates, opened)
    await check_accepted(server, sampling, by_task)
    return replace(sampling, by_task=by_task)
