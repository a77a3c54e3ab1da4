"""Export a model to the formats of other libraries and runtimes, and upload it to the Hugging Face hub.

Each format is one file with one class (see `format_table.ExportFormat`).
"""

from mmtune.exporting.export_model import export
from mmtune.exporting.format_table import ExportFormat, ExportRequest, Written, register_format

__all__ = ["ExportFormat", "ExportRequest", "Written", "export", "register_format"]
