"""Print docs/configuration.md from the pydantic models: python docs/configuration.py > docs/configuration.md."""

import sys
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from homeostat.config import ProjectConfig
from homeostat.gateway.config import GatewayConfig, Rule, Source, Target
from homeostat.settings import Settings

GATEWAY = {
    "Top level of gateway.toml": GatewayConfig,
    "[sources.NAME]": Source,
    "[[sources.NAME.rules]]": Rule,
    "[targets.NAME]": Target,
}


def _section(annotation: Any) -> type[BaseModel] | None:
    options = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def _type(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) is dict:
        return "table"
    if get_args(annotation):
        return " or ".join(t for t in map(_type, get_args(annotation)) if t not in ("None", "Ellipsis"))
    return getattr(annotation, "__name__", str(annotation)).replace("NoneType", "None")


def _row(key: str, field: FieldInfo) -> str:
    default = "required" if field.default is PydanticUndefined else f"`{field.default!r}`".replace("'", '"')
    return f"| `{key}` | {_type(field.annotation)} | {default} | {field.description or ''} |"


def _table(title: str, model: type[BaseModel]) -> list[str]:
    lines = [f"## {title}", "", (model.__doc__ or "").strip(), "", "| key | values | default | |", "|---|---|---|---|"]
    plain = {key: field for key, field in model.model_fields.items() if _section(field.annotation) is None}
    lines += [_row(key, field) for key, field in plain.items()]
    for key, field in model.model_fields.items():
        nested = _section(field.annotation)
        if nested is not None:
            name = f"[{key}]" if model is ProjectConfig else f"{title[:-1]}.{key}]"
            lines += ["", *_table(name, nested)]
    return lines


def page() -> str:
    """Return the whole page."""
    head = ["# project.toml", "", "Made by `python docs/configuration.py` from `homeostat/config.py`.", ""]
    lines = [*head, *_table("Top level", ProjectConfig), "", "# Environment", "", (Settings.__doc__ or "").strip(), ""]
    lines += ["| variable | |", "|---|---|"]
    lines += [f"| `HOMEOSTAT_{name.upper()}` | {f.description or ''} |" for name, f in Settings.model_fields.items()]
    lines += ["| `HOMEOSTAT_PREFECT_PORT` | port of Prefect in `make up`; default 4200 |"]
    lines += ["| `HOMEOSTAT_MLFLOW_PORT` | port of MLflow in `make up`; default 5000 |"]
    lines += ["", "# gateway.toml", "", "Beside `prefect.yaml`; [gateway.md](gateway.md) has an example.", ""]
    for title, model in GATEWAY.items():
        lines += [*_table(title, model), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(page())
