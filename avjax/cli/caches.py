"""`avjax cache`: what the caches on disk take, and an end to them."""

from typing import Annotated

import typer

from avjax.cli.options import Cache, exit_with_message


def cache(
    cache_dir: Cache = None,
    clear: Annotated[bool, typer.Option("--clear", help="Remove all that is cached.")] = False,
) -> None:
    """Show where compiled programs and encoder outputs are cached and what they take, or remove them."""
    with exit_with_message():
        from avjax.caching import CACHED, default_directory, expanded
        from avjax.devices.disk import size, trim

        directory = default_directory() if cache_dir is None else expanded(cache_dir)
        if directory is None:
            typer.echo("nothing is cached: AVJAX_CACHE is off")
            return
        typer.echo(directory)
        for what, pattern, most in CACHED:
            count, taken = size(directory, pattern)
            if clear:
                trim(directory, pattern, max_bytes=0)
                typer.echo(f"removed: {count:,} {what}, {taken / 1e6:,.1f} MB")
            else:
                typer.echo(f"{count:,} {what}, {taken / 1e6:,.1f} MB of at most {most / 1e9:,.1f} GB")
