"""`homeostat init`: a project that runs at once, and its deployments."""

from __future__ import annotations

import fcntl
import importlib.resources
import importlib.util
import keyword
import os
import re
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from string import Template
from typing import get_args

from homeostat.errors import ConfigError
from homeostat.records import Task

FLOWS = ("lifecycle", "monitor", "retrain", "promote", "rollback")
NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")


def init_project(name: str, root: Path, task: str = "classification") -> list[Path]:
    """Write projects/NAME and add its deployments to prefect.yaml; return the files written.

    Raises ConfigError, with nothing written, when the name cannot be used, the project or its
    deployments exist, or `root` is no checkout. Several at once wait for each other.
    """
    _check_name(name)
    if task not in get_args(Task):
        raise ConfigError(f"task {task!r}: choose {' or '.join(get_args(Task))}")
    with _alone(root):
        return _init(name, root, task)


def _init(name: str, root: Path, task: str) -> list[Path]:
    target, deployments = root / "projects" / name, root / "prefect.yaml"
    if target.exists():
        raise ConfigError(f"{target} exists; choose another name, or remove it first")
    text = _with_block(deployments, name)
    contents = _contents(name, task)
    package = target.parent / "__init__.py"
    made = [] if package.exists() else [package]
    try:
        _write_folder(target, contents)
        for file in made:
            file.write_text('"""Projects of this checkout."""\n', encoding="utf-8")
        _replace(deployments, text)
    except OSError:
        shutil.rmtree(target, ignore_errors=True)
        for file in made:
            file.unlink(missing_ok=True)
        raise
    return [*made, *(target / file for file in contents), deployments]


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Hold the lock of the checkout's folder; it goes with the descriptor, so no file is left."""
    try:
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(
            f"{root}: no such folder; run this in a checkout of homeostat, or set HOMEOSTAT_ROOT"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write_folder(target: Path, contents: dict[str, str]) -> None:
    """Write the files of a new folder under a temporary name, then rename it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        for file, content in contents.items():
            (temporary / file).write_text(content, encoding="utf-8")
        temporary.chmod(0o755)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def deployment_block(name: str) -> str:
    """Return the YAML of a project's five deployments, items of the list `deployments` in prefect.yaml."""
    project = f"name: {name}, parameters: {{project: {name}}}"
    return f"""\
  - {{<<: *lifecycle, {project}}}
  - {{<<: *monitor, {project}}}
  - <<: *retrain
    name: {name}
    parameters: {{project: {name}}}
    triggers:
      - {{type: event, expect: [homeostat.harm], match: {{prefect.resource.id: homeostat.model.{name}}},
         posture: Reactive, threshold: 1, within: 60, name: retrain {name} on harm, parameters: {{trigger: harm}}}}
      - {{type: event, expect: [homeostat.drift], match: {{prefect.resource.id: homeostat.model.{name}}},
         posture: Reactive, threshold: 1, within: 60, name: retrain {name} on drift, parameters: {{trigger: drift}}}}
  - {{<<: *promote, {project}}}
  - {{<<: *rollback, {project}}}
"""


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise ConfigError(f"project name {name!r}: use lower-case letters, digits and _, a letter first, at most 63")
    if keyword.iskeyword(name) or keyword.issoftkeyword(name):
        raise ConfigError(f"project name {name!r} is a Python keyword; choose another")
    if name in sys.stdlib_module_names or importlib.util.find_spec(name) is not None:
        raise ConfigError(f"project name {name!r} is a Python module that can be imported here; choose another")


def _contents(name: str, task: str) -> dict[str, str]:
    words = name.replace("_", " ").split()
    values = {
        "name": name,
        "title": " ".join(words).capitalize(),
        "class_name": "".join(word.capitalize() for word in words),
    }
    templates = importlib.resources.files("homeostat") / "templates"
    files = {"__init__.py": "init.py", "project.py": f"{task}.py", "project.toml": f"{task}.toml"}
    return {
        file: Template((templates / f"{source}.tmpl").read_text(encoding="utf-8")).substitute(values)
        for file, source in files.items()
    }


def _with_block(path: Path, name: str) -> str:
    """Return the text of prefect.yaml with the project's deployments at its end."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: no such file; run this in a checkout of homeostat, or set HOMEOSTAT_ROOT"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error}; restore it") from error
    keys = re.findall(r"^([A-Za-z_][\w-]*):", text, flags=re.MULTILINE)
    if not keys or keys[-1] != "deployments":
        raise ConfigError(f"{path}: `deployments:` must be the last top-level key, so that a project can be added")
    if re.search(rf"\bproject: {name}\b", text):
        raise ConfigError(f"{path} has deployments of a project {name!r}; choose another name, or remove them")
    missing = [flow for flow in FLOWS if not re.search(rf"&{flow}\b", text)]
    if missing:
        raise ConfigError(
            f"{path}: no anchor &{', &'.join(missing)} under `definitions:`; restore it, as in homeostat's"
        )
    empty = re.sub(r"^deployments:[ \t]*\[\][ \t]*$", "deployments:", text, flags=re.MULTILINE)
    if re.search(r"^deployments:[ \t]*[^\s#]", empty, flags=re.MULTILINE):
        raise ConfigError(
            f"{path}: write the list `deployments:` with an item a line (`  - ...`), so that one can be added"
        )
    first = re.search(r"^deployments:.*?^( *)- ", empty, flags=re.MULTILINE | re.DOTALL)
    block = textwrap.indent(textwrap.dedent(deployment_block(name)), first[1] if first else "  ")
    return f"{empty.rstrip()}\n\n{block}"


def _replace(path: Path, text: str) -> None:
    path = path.resolve()  # a link stays one
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.chmod(path.stat().st_mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
