"""`tandem keys`."""

import click

from tandem.config.tenants import check_name, key_line, new_key


@click.group()
def keys() -> None:
    """Keys with which tenants call the gateway."""


@keys.command()
@click.argument("tenant")
def new(tenant: str) -> None:
    """Draw a key for TENANT, and show the hash that goes into the file of gateway.api_keys. Nothing keeps the key."""
    check_name(tenant)
    key = new_key()
    click.echo(key)
    click.echo(
        f'\n# {tenant}\'s table; with further keys, one more in the list\n[{tenant}]\nkeys = ["{key_line(key)}"]'
    )
