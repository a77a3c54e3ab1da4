"""The result of `mmtune.export`."""

from dataclasses import dataclass, field

from mmtune.runtime.results import ResultFields


@dataclass
class ExportResult(ResultFields):
    """What was exported, and how near its vectors are to those of the model.

    format: name of the format
    out: the directory; "" if the export was refused
    fingerprint: fingerprint of the model
    towers: {modality: file or folder in the directory}
    left_out: {modality: why the format cannot hold its tower}
    notes: what the format does not apply by itself, and what a user of the files has to do
    usage: code that embeds with the real library
    bytes: size of the directory
    difference: {modality: largest difference of a component of a vector between model and export}; {} if not checked
    same_fingerprint: whether `mmtune.load` of the export gives the model's fingerprint; None if mmtune does not read the format
    recall: {direction: {"model", "export"}}, recall@10 on the data; {} without data
    speed: {modality: {"torch", "export"}}, items a second; {} if not measured
    accepted: False if recall@10 fell by more than the limit
    """

    format: str
    out: str
    fingerprint: str
    towers: dict[str, str]
    left_out: dict[str, str]
    notes: list[str]
    usage: str
    bytes: int = 0
    difference: dict[str, float] = field(default_factory=dict)
    same_fingerprint: bool | None = None
    recall: dict[str, dict[str, float]] = field(default_factory=dict)
    speed: dict[str, dict[str, float]] = field(default_factory=dict)
    accepted: bool = True

    def __str__(self) -> str:
        if self.accepted:
            lines = [f"{self.out}: {self.format}, {self.bytes / 1e6:.1f} MB, of the model {self.fingerprint}"]
        else:
            lines = [f"refused: the export to {self.format} retrieves worse than the model; nothing was written"]
        for m, path in self.towers.items():
            checked = f", vectors differ by at most {self.difference[m]:.1e}" if m in self.difference else ", not compared"
            lines.append(f"  {m}: {path}{checked}")
        lines += [f"  {m}: left out: {why}" for m, why in self.left_out.items()]
        if self.same_fingerprint is not None:
            lines.append(f"  mmtune loads it with {'the same' if self.same_fingerprint else 'another'} fingerprint")
        lines += [f"  recall@10 {d}: {r['model']:.4f} model, {r['export']:.4f} export" for d, r in self.recall.items()]
        lines += [f"  {m}: {s['torch']:.1f} items/s in torch, {s['export']:.1f} in the export" for m, s in self.speed.items()]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])
