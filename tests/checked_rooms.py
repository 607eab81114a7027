"""Rooms whose jaxtyping annotations are checked while tests run."""

CHECKED = ("avjax.models", "avjax.engine", "avjax.sweeping", "avjax.metrics")
