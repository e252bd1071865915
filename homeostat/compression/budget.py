"""The budget of project.toml: who is eligible, and which eligible candidate is the smallest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from homeostat.config import CompressConfig
from homeostat.records import Candidate


def refusal(candidate: Candidate, fp32: Candidate, primary: str, higher_is_better: bool, budget: CompressConfig) -> str:
    """Return why the budget refuses a candidate, with the figures; empty when it does not."""
    if not math.isfinite(candidate.max_difference) or not math.isfinite(candidate.metrics[primary]):
        return "it answers NaN or Inf on validation rows"
    if not candidate.batch_invariant:
        return "not batch-invariant"
    drop = fp32.metrics[primary] - candidate.metrics[primary]
    drop = drop if higher_is_better else -drop
    if drop > budget.max_metric_drop + 1e-12:
        return f"{primary} {drop:.4f} worse (allowed {budget.max_metric_drop:g})"
    ratio = candidate.latency[0].p50_us / fp32.latency[0].p50_us
    if ratio > budget.max_latency_ratio:
        return f"p50 {ratio:.2f}x fp32's (allowed {budget.max_latency_ratio:g}x)"
    if budget.max_latency_ms is not None and candidate.latency[0].p99_us > budget.max_latency_ms * 1000:
        return f"p99 {candidate.latency[0].p99_us / 1000:.3f} ms (allowed {budget.max_latency_ms:g} ms)"
    return ""


def choose(
    candidates: Sequence[Candidate], primary: str, higher_is_better: bool, budget: CompressConfig
) -> tuple[tuple[Candidate, ...], str, str]:
    """Return the candidates with their refusals, the winner's name and the reason.

    The smallest eligible file wins; of two of one size the faster at batch 1. fp32 is never
    refused: it is what remains when nothing else keeps the budget.
    """
    fp32 = next(c for c in candidates if c.name == "fp32")
    judged = tuple(
        c if c.name == "fp32" else replace(c, refused=refusal(c, fp32, primary, higher_is_better, budget))
        for c in candidates
    )
    eligible = [c for c in judged if not c.refused]
    winner = min(eligible, key=lambda c: (c.onnx.bytes, c.name != "fp32", c.latency[0].p50_us))
    if winner.name == "fp32":
        others = "; ".join(f"{c.name}: {c.refused or 'not smaller'}" for c in judged if c.name != "fp32")
        reason = f"no other candidate is smaller within the budget ({others or 'none was asked for'})"
        p99 = fp32.latency[0].p99_us / 1000
        if budget.max_latency_ms is not None and p99 > budget.max_latency_ms:
            reason += f"; fp32 itself is over it: p99 {p99:.3f} ms (allowed {budget.max_latency_ms:g} ms)"
        return judged, "fp32", reason
    ratio = fp32.onnx.bytes / winner.onnx.bytes
    return judged, winner.name, f"{ratio:.1f}x smaller than fp32, {primary} {winner.metrics[primary]:.4f} on validation"
