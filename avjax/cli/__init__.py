"""The command `avjax`: every file is one of its rooms; nothing else in avjax imports it."""

from avjax.cli.main import app as app
