"""Running agents over benchmarks: plan, runner, run folder, metrics."""
