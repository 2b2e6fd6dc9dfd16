"""The labelled comparisons of a file, whatever form its rows have."""

from collections.abc import Mapping
from typing import Any

from cot_reward.errors import UserError
from cot_reward.records import Comparison
from cot_reward.rows.adapters import Adapter, adapter_for
from cot_reward.rows.labels import FileLabels


class ComparisonReader:
    """Reads the rows of one file; its adapter is the one that knows the first row.

    `prefix` leads from the media root to the paths of raw rows. `labels` are the file's. `task` is
    the task of rows that do not name one. `templates` (task -> template) help to read the prompts
    of judged rows.
    """

    def __init__(
        self,
        prefix: str,
        labels: FileLabels,
        task: str | None = None,
        adapter_name: str | None = None,
        templates: Mapping[str, str] | None = None,
    ) -> None:
        self._prefix, self._labels, self._task = prefix, labels, task
        self._adapter_name, self._templates = adapter_name, templates
        self._adapter: Adapter | None = None

    def comparison(self, row: dict[str, Any]) -> Comparison:
        """The comparison of a row, whose task is filled in.

        Raises TieError, and ValueError for every row that cannot be read.
        """
        if self._task is not None:
            row.setdefault("task", self._task)
        try:
            self._adapter = self._adapter or adapter_for(
                row, self._adapter_name, self._templates, self._labels
            )
            comparison = self._adapter(row, self._prefix)
        except UserError as error:
            raise ValueError(str(error)) from None
        except (LookupError, TypeError, AttributeError) as error:
            # An adapter trusts the form of a row, so that a wrong form raises anything.
            raise ValueError(f"not of the adapter's form: {error!r}") from None
        if self._task not in (None, comparison.task):
            raise ValueError(f"a record of task {comparison.task}, not of --task {self._task}")
        return comparison
