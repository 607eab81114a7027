"""Rooms whose jaxtyping annotations are checked while tests run, and how."""

from beartype import BeartypeConf, beartype

CHECKED = ("avjax.models", "avjax.engine", "avjax.sweeping", "avjax.metrics")
check_types = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as for other type checkers
