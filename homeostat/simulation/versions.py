"""Versions that are faulty on purpose, made of the champion's graph: to see guards, gates and rollbacks at work."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any, Literal, get_args

import fsspec
import numpy as np

from homeostat.bundle import Bundle, build, load_key, load_public_key, open_bundle
from homeostat.config import ProjectConfig, Strategy
from homeostat.control.store import ControlStore
from homeostat.dataset import Array
from homeostat.errors import DataInvalid, HomeostatError, NotFound
from homeostat.golden import read_golden
from homeostat.records import BundleRef
from homeostat.registry import Registry
from homeostat.settings import Settings

VersionFault = Literal["bad", "subtle", "slow", "corrupted"]
FAULTS: tuple[VersionFault, ...] = get_args(VersionFault)
SHARE = 0.15
"""Of the rows that a subtle fault answers wrongly, at most."""
WIDTH, TIMES = 1500, 60
"""Matrix products of a slow version: several milliseconds a request on one core."""


def push_version(
    config: ProjectConfig,
    settings: Settings,
    store: ControlStore,
    fault: VersionFault,
    strategy: Strategy | None = None,
) -> BundleRef:
    """Register a faulty version of the champion in MLflow and the control store, and return its bundle.

    bad: every answer is wrong. subtle: those to at most SHARE of the rows are. slow: right, and late. corrupted:
    right, until a byte of the bundle was changed behind its signature. It is signed as a version of
    a pipeline is, has passed no gate, and no traffic goes to it. strategy: of its rollout, if not the
    project's. Raises NotFound without a champion, RegistryUnavailable, DataInvalid when no fault is known
    for the graph.
    """
    champion = store.champion(config.name)
    if champion is None:
        raise NotFound(f"{config.name} has no champion to make a faulty version of")
    live = open_bundle(champion, load_public_key(settings.home))
    manifest, (golden, _) = live.manifest, read_golden(live.golden)
    pipeline = f"simulated-{fault}-{uuid.uuid4().hex[:12]}"
    onnx = faulty_graph(live, fault, pipeline)
    if strategy is not None:
        rollout = config.rollout.model_copy(update={"strategy": strategy})
        config = config.model_copy(update={"rollout": rollout})
    registry = Registry(settings.mlflow_url)
    run = registry.start_run(config.name, pipeline, {"homeostat.simulated": fault})
    about = f"{fault} on purpose, made of v{champion.version} by `homeostat push-faulty`"
    try:
        made = build(
            config.name,
            registry.register_graph(run, config.name, onnx, about, golden),
            onnx,
            live.contract,
            live.profile,
            config,
            replace(manifest.lineage, pipeline_id=pipeline, parent_version=champion.version),
            live.reference,
            golden,
            load_key(settings.home),
            settings.bundles_url,
            manifest.classes,
        )
        if fault == "corrupted":
            _flip_a_byte(made)
        store.register_bundle(made)
    except HomeostatError as error:
        registry.fail_run(config.name, pipeline, str(error))
        raise
    registry.end_run(run)
    return made


def faulty_graph(live: Bundle, fault: VersionFault, mark: str) -> bytes:
    """Return the champion's graph with a fault. mark: goes into its bytes, so that no two are the same."""
    import onnx
    import onnx.compose
    from onnx import helper, numpy_helper

    from homeostat.monitoring.reference import load_reference

    model = onnx.load_from_string(live.onnx)
    model = onnx.compose.add_prefix(model, "live/", rename_inputs=False, rename_outputs=False)
    model.doc_string = mark
    graph = model.graph
    output = graph.output[0]
    right = f"{output.name}_right"
    if len(output.type.tensor_type.shape.dim) != 2:
        raise DataInvalid(f"the graph's output {output.name} is not [n, k]: no fault is known for it")
    for node in graph.node:
        node.output[:] = [right if name == output.name else name for name in node.output]
        node.input[:] = [right if name == output.name else name for name in node.input]
    nodes: list[Any] = []
    weights: dict[str, Array] = {}
    width = read_golden(live.golden)[1][output.name].shape[1]
    if fault == "corrupted":
        nodes = [helper.make_node("Identity", [right], [output.name])]
    elif fault == "slow":
        weights = {"fault_zeros": np.zeros((width, WIDTH), np.float32), "fault_w": np.zeros((WIDTH, WIDTH), np.float32)}
        weights["fault_back"] = np.zeros((WIDTH, width), np.float32)
        nodes = [helper.make_node("MatMul", [right, "fault_zeros"], ["fault_0"])]
        nodes += [helper.make_node("MatMul", [f"fault_{i}", "fault_w"], [f"fault_{i + 1}"]) for i in range(TIMES)]
        nodes += [
            helper.make_node("MatMul", [f"fault_{TIMES}", "fault_back"], ["fault_none"]),
            helper.make_node("Add", [right, "fault_none"], [output.name]),
        ]
    else:
        wrong = output.name if fault == "bad" else "fault_wrong"
        classification = live.manifest.task == "classification"
        nodes, weights = _wrong(right, wrong, width, classification=classification)
        if fault == "subtle":
            answers = load_reference(live.reference).outputs[output.name]
            more, limit = _some_rows(right, answers, classification=classification)
            nodes += [*more, helper.make_node("Where", ["fault_some", wrong, right], [output.name])]
            weights |= limit
    graph.node.extend(nodes)
    graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in weights.items())
    altered: bytes = model.SerializeToString()
    return altered


def _wrong(right: str, wrong: str, width: int, *, classification: bool) -> tuple[list[Any], dict[str, Array]]:
    """Return nodes that answer another class, 1 - p, or a number half as large again."""
    from onnx import helper

    if not classification:
        more = {"fault_factor": np.array([1.5], np.float32)}
        return [helper.make_node("Mul", [right, "fault_factor"], [wrong])], more
    if width == 1:
        return [helper.make_node("Sub", ["fault_one", right], [wrong])], {"fault_one": np.array([1], np.float32)}
    places = np.roll(np.arange(width), 1)
    return [helper.make_node("Gather", [right, "fault_places"], [wrong], axis=1)], {"fault_places": places}


def _some_rows(right: str, answers: Array, *, classification: bool) -> tuple[list[Any], dict[str, Array]]:
    """Return nodes that are true [n, 1] for the rows that a subtle fault answers wrongly.

    answers: [n, k], of the reference. Those rows have the largest answers, or are of the first SHARE of
    the classes. By the answer and not by an input, so that their share stays when other rows come than before.
    """
    from onnx import helper

    columns = np.arange(max(1, int(SHARE * answers.shape[1])))
    score = answers[:, columns].sum(axis=1, dtype=np.float32)
    limit = np.quantile(score[np.isfinite(score)], 1 - SHARE, method="higher")
    if classification and answers.shape[1] > 1:
        limit = max(limit, np.float32(0.5))  # or rows of other classes too, when these are rarer than SHARE
    nodes = [
        helper.make_node("Gather", [right, "fault_columns"], ["fault_first"], axis=1),
        helper.make_node("ReduceSum", ["fault_first", "fault_axis"], ["fault_score"], keepdims=1),
        helper.make_node("GreaterOrEqual", ["fault_score", "fault_limit"], ["fault_some"]),
    ]
    weights = {"fault_columns": columns, "fault_axis": np.array([1]), "fault_limit": np.array([[limit]], answers.dtype)}
    return nodes, weights


def _flip_a_byte(bundle: BundleRef) -> None:
    fs, folder = fsspec.core.url_to_fs(bundle.url)
    path = f"{folder}/model.onnx"
    data = bytearray(fs.cat_file(path))
    data[len(data) // 2] ^= 0xFF
    fs.pipe_file(path, bytes(data))
