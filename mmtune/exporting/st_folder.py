"""Export to a folder of sentence-transformers: `SentenceTransformer(DIR)` (version 6 for anything but texts).

A dual encoder of transformers is one Transformer module. Encoders of several checkpoints become a Router with one route for each
modality. A linear head becomes a Dense module, and truncation a Dense module with an identity matrix.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from mmtune.contracts import JsonObject
from mmtune.errors import ModelError
from mmtune.exporting.format_table import ExportRequest, Written
from mmtune.exporting.st_routes import Route, dense_of_head, dual_encoder_route, route_of, truncation, write_module
from mmtune.exporting.what_it_holds import settings_notes, text_modality
from mmtune.model.artifact import load
from mmtune.model.dual_encoder import Model
from mmtune.recipe.prompts_block import DEFAULT
from mmtune.runtime.files import write_json

if TYPE_CHECKING:
    pass

ROUTER = "sentence_transformers.base.modules.router.Router"
NORMALIZE = "sentence_transformers.base.modules.normalize.Normalize"


class SentenceTransformersFolder:
    """Writes the towers that modules of sentence-transformers can compute."""

    quantizes = False
    tolerance = 1e-5

    def write(self, model: Model, directory: Path, request: ExportRequest) -> Written:
        written = Written({}, notes=settings_notes(model, prompts=True, dim=True))
        routes = _routes(model, written)
        if not routes:
            raise ModelError(f"export to sentence-transformers: {'; '.join(f'{m}: {r}' for m, r in written.left_out.items())}")
        names = list(dict.fromkeys(m for route in routes for m in route.modalities))
        single = len(routes) == 1
        entries = []
        if single:
            for number, module in enumerate(routes[0].modules):
                path = "" if number == 0 else f"{number}_{module.kind}"
                write_module(module, directory / path)
                entries.append((path, module.type))
        else:
            _write_router(routes, directory)
            entries.append(("", ROUTER))
        if entries[-1][1] != NORMALIZE:
            path = f"{len(entries)}_Normalize"
            (directory / path).mkdir()
            entries.append((path, NORMALIZE))
        write_json(
            directory / "modules.json", [{"idx": i, "name": str(i), "path": p, "type": t} for i, (p, t) in enumerate(entries)]
        )
        write_json(directory / "config_sentence_transformers.json", _settings(model, written))
        written.towers = dict.fromkeys(names, ".")
        written.usage = (
            'from sentence_transformers import SentenceTransformer\nmodel = SentenceTransformer("DIR")  # model.encode([...])'
        )
        written.model = "st:DIR" if single and _read_by_mmtune(routes[0]) else None
        if written.model is None:
            written.notes.append("mmtune does not read this folder back; keep the artifact")
        return written

    def reopen(self, model: Model, directory: Path, written: Written) -> Model | None:
        if written.model is None:
            return None
        return load(f"st:{directory}", cpu_kernels="off", device="cpu")


def _routes(model: Model, written: Written) -> list[Route]:
    """Return the routes of the towers that the format can hold, and fill in `written.left_out`."""
    routes = []
    for backbone, names in model.backbones:
        if len(names) > 1 and (route := dual_encoder_route(backbone, names)) and not any(m in model.heads for m in names):
            routes.append(_finished(model, route))
            continue
        for m in names:
            route, reason = route_of(backbone, m)
            if route is None:
                written.left_out[m] = reason
            elif m in model.heads and (dense := dense_of_head(model.heads[m])) is None:
                written.left_out[m] = "its head is an MLP, for which sentence-transformers has no module"
            else:
                head = [dense] if m in model.heads and dense is not None else []
                routes.append(_finished(model, Route([m], [*route.modules, *head])))
    return routes


def _finished(model: Model, route: Route) -> Route:
    return Route(route.modalities, [*route.modules, *([truncation(model.width, model.dim)] if model.dim < model.width else [])])


def _read_by_mmtune(route: Route) -> bool:
    """Whether mmtune's family st reads a route: dual encoders without further layers, and text encoders."""
    return len(route.modules) == 1 if len(route.modalities) > 1 else "max_seq_length" in route.modules[0].config


def _write_router(routes: list[Route], directory: Path) -> None:
    types: dict[str, str] = {}
    structure: dict[str, list[str]] = {}
    mappings: dict[str, str] = {}
    for route in routes:
        name = "+".join(route.modalities)
        structure[name] = []
        for number, module in enumerate(route.modules):
            key = f"{name}_{number}_{module.kind}"
            write_module(module, directory / key)
            types[key] = module.type
            structure[name].append(key)
        mappings |= {str((None, m)): name for m in route.modalities}
    first = next(iter(structure))
    parameters = {"default_route": first, "allow_empty_key": True, "route_mappings": mappings}
    write_json(directory / "router_config.json", {"types": types, "structure": structure, "parameters": parameters})


def _settings(model: Model, written: Written) -> JsonObject:
    """Return the content of config_sentence_transformers.json: the prompts as prefixes, as far as that is possible."""
    prompts: dict[str, str] = {}
    name = text_modality(model)
    for role, templates in model.prompts.get(name or "", {}).items():
        if len(templates) == 1 and templates[0].endswith("{}") and templates[0].count("{}") == 1:
            prompts["document" if role == DEFAULT else role] = templates[0].removesuffix("{}")
        else:
            written.notes.append(
                f"the prompt {role!r} is no single prefix, so sentence-transformers cannot apply it: {templates}"
            )
    return {
        "model_type": "SentenceTransformer",
        "prompts": prompts,
        "default_prompt_name": "document" if "document" in prompts else None,
        "similarity_fn_name": "cosine",
    }
