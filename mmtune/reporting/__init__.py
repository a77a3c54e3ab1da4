"""Reports of results, each a single self-contained HTML file."""

from mmtune.reporting.task_section import ReportedTask

__all__ = ["ReportedTask"]
