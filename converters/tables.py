"""The key table of each family, by name."""

from avjax.config import ModelConfig
from converters import qwen2_5_omni, qwen2_5_vl
from converters.rules import Table

TABLES = {"qwen2_5_omni": qwen2_5_omni.table, "qwen2_5_vl": qwen2_5_vl.table}


def table_for(config: ModelConfig) -> Table:
    return TABLES[config.family](config)
