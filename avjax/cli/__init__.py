"""The command `avjax`; nothing else in avjax imports it."""

from avjax.cli.main import app as app
