"""Micro results as tables."""

from rich.table import Table

from bench.micro.table import MicroResult

MEGA = 1e6


def step_table(result: MicroResult) -> Table:
    """A row a step: threads, sequences, new tokens and keys of each, milliseconds, and how far it is from its floor."""
    table = Table("phase", "thr.", "seqs", "new", "context", "ms", "low", "high", "floor", "ratio")
    for step in result.steps:
        shape = step.shape
        counts = (shape.num_threads, shape.num_sequences, shape.num_new_tokens, shape.num_context_tokens)
        times = (step.median_ms, step.lowest_ms, step.highest_ms, step.floor_ms, step.median_ms / step.floor_ms)
        table.add_row(shape.phase, *map(str, counts), *(f"{value:.2f}" for value in times))
    return table


def cost_table(result: MicroResult) -> Table:
    """Floors and everything that is not a step."""
    table = Table("what", "at", "cost")
    for floor in result.floors:
        table.add_row("memory read", f"{floor.num_threads} threads", f"{floor.read_gb_per_s:.1f} GB/s")
        table.add_row("matrix product", f"{floor.num_threads} threads", f"{floor.gemm_gflop_per_s:.0f} GFLOP/s")
    for decision in result.decisions:
        table.add_row(decision.decision, f"{decision.queue_depth} waiting", f"{decision.median_us:.1f} us")
    for lease in result.leases:
        table.add_row(lease.call, f"{lease.num_blocks} blocks", f"{lease.median_ms:.2f} ms, p99 {lease.p99_ms:.2f}")
    for cost in result.gateway:
        streams = f"{cost.num_streams} streams of {cost.num_output_tokens}"
        table.add_row("gateway CPU", streams, f"{cost.cpu_us_per_token:.0f} us a token")
        table.add_row("decode CPU but its steps", streams, f"{cost.decode_loop_us_per_token:.0f} us a token")
    if result.gateway_request_us is not None:
        table.add_row("gateway CPU, beginning and end", "a request", f"{result.gateway_request_us:.0f} us")
    for each in result.overhead:
        at = f"batch {each.shape.num_sequences}, {each.shape.num_threads} threads"
        spent = f"{each.share * 100:.1f} % of {each.step_ms:.1f} ms"
        table.add_row("decode step but its operators", at, spent)
    return table


def memory_table(result: MicroResult) -> Table:
    """Segments and their formulas; processes' shares of them."""
    table = Table("memory", "MB", "")
    for segment in result.segments:
        table.add_row(f"segment {segment.segment}", _mb(segment.size_bytes), f"formula {_mb(segment.formula_bytes)}")
    for service in result.services:
        parts = f"own {_mb(service.pss_anonymous_bytes)}, segments {_mb(service.pss_shared_bytes)}"
        table.add_row(f"{service.service}, PSS", _mb(service.pss_bytes), f"{parts}; RSS {_mb(service.rss_bytes)}")
    pss_bytes = sum(service.pss_bytes for service in result.services)
    rss_bytes = sum(service.rss_bytes for service in result.services)
    table.add_row("all services, PSS", _mb(pss_bytes), f"RSS {_mb(rss_bytes)}")
    return table


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / MEGA:.1f}"
