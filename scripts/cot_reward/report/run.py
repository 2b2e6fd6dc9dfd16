"""scripts/compare.py and scripts/report.py: read, compute, write."""

from cot_reward.evaluation.compare import compare, read_runs
from cot_reward.evaluation.comparison_table import comparison_table
from cot_reward.evaluation.page import write_report
from cot_reward.report.folders import write_comparison_page, write_folder_page
from cot_reward.report.page import PAGE
from cot_reward.report.settings import CompareSettings, ReportSettings
from cot_reward.settings import read_yaml, shipped
from cot_reward.store import without_nan, write_json, write_text_file


def write_comparison(settings: CompareSettings) -> str:
    """Compare the runs; writes JSON, Markdown and a page, returns the table. Raises UserError."""
    runs = read_runs(settings.runs, settings.names)
    found = compare(runs, settings.common)
    published = read_yaml(shipped(settings.published)) if settings.published else {}
    table = comparison_table(found, published)
    settings.out.mkdir(parents=True, exist_ok=True)
    write_json(settings.out / "comparison.json", without_nan(found))
    write_text_file(settings.out / "comparison.md", table)
    if not settings.page:
        return table
    page = write_comparison_page(
        found, runs, settings.out, settings.media_root, settings.samples, settings.limit
    )
    return f"{table}\n{page}\n"


def report(settings: ReportSettings) -> str:
    """The page of each folder; without folders table, plots and page of a chain. What to print.

    Raises UserError.
    """
    table = ""
    folders = settings.folders
    if not folders:
        link = PAGE if settings.page and not settings.out else ""
        table = write_report(settings.runs, settings.seeds, link)
        folders = [settings.runs] if settings.page else []
    pages = [
        write_folder_page(
            folder, settings.out or folder, settings.media_root, settings.samples, settings.limit
        )
        for folder in folders
    ]
    return "\n".join(filter(None, (table, *map(str, pages))))
