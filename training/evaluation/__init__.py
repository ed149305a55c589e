"""Measuring a model by benchmarks: `training.pipelines.eval` puts the parts together."""
