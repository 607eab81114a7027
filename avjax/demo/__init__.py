"""The paper's main experiments on the built-in checkpoint: `avjax demo`."""
