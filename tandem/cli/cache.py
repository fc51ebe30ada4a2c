"""`tandem cache`: what is kept of prompts that were computed, and documents that are to be ready in advance."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import click
from rich.table import Table

from tandem.cli.access import access_options
from tandem.cli.asking import ask_memd
from tandem.cli.deployment import Deployment, Overrides, connected, deployment_options, replica_option, resolve
from tandem.cli.documents import Document, read_document
from tandem.cli.output import new_console
from tandem.cli.programs import replica_dirs
from tandem.client import Access, Client
from tandem.config.tenants import check_name
from tandem.errors import InvalidRequestError, NotFoundError
from tandem.kv.cached_runs import CachedRun
from tandem.kv.contents import domain_of
from tandem.kv.outcomes import Withdrawal
from tandem.kv.store import StorageStatistics
from tandem.rpc.cache_client import CacheClient, prompt_keys
from tandem.types import ContentKind

SHORT_HEX = 12  # of a namespace or key
BATCH_PRIORITY = -1
DEFAULT_LIMIT = 40

_T = TypeVar("_T")

salt_option = click.option("--salt", default="", help="cache_salt of the requests that are to find it; default: none.")


@click.group()
def cache() -> None:
    """Show, fill and empty the cache of computed prompts."""


@cache.command(name="ls")
@click.argument("namespace", required=False, metavar="[NAMESPACE]")
@click.option("--limit", default=DEFAULT_LIMIT, show_default=True, type=click.IntRange(1), help="Rows, newest first.")
@replica_option
@deployment_options
def list_runs(
    namespace: str | None, *, limit: int, replica: int, config_file: Path | None, run_dir: Path | None
) -> None:
    """List cached prefixes: the tokens of a prompt that each covers, how often it was found, how long ago.

    NAMESPACE, or its beginning, leaves out the others: those with another salt, model or KV dtype.
    """
    deployment = resolve(Overrides(config_file, run_dir), os.environ)
    memd = deployment.address("memd", replica)
    runs, statistics = ask_cache(memd, CacheClient.runs), ask_memd(memd)
    chosen = [run for run in runs if run.namespace.hex().startswith(namespace or "")]
    new_console().print(runs_table(chosen, statistics.fingerprint.block_size, limit))


@cache.command()
@replica_option
@deployment_options
def stats(replica: int, config_file: Path | None, run_dir: Path | None) -> None:
    """Show how much of what was asked for was there, and what the blocks hold."""
    deployment = resolve(Overrides(config_file, run_dir), os.environ)
    new_console().print(statistics_table(ask_memd(deployment.address("memd", replica))))


@cache.command()
@click.argument("namespaces", nargs=-1, metavar="[NAMESPACE]...")
@click.option("--salt", help="The namespace of this cache_salt.")
@click.option("--tenant", help="Every namespace of this tenant's sharing domain, whatever the salt.")
@click.option("--all", "everything", is_flag=True, help="Every namespace.")
@access_options
@deployment_options
def rm(
    namespaces: tuple[str, ...],
    salt: str | None,
    tenant: str | None,
    *,
    everything: bool,
    access: Access,
    **where: Path | None,
) -> None:
    """Forget what was computed in each NAMESPACE (as `ls` shows it) and of segments for it, pinned or not.

    Of every replica of `up --replicas`. What running requests use is not found any more, and free when they end.
    """
    if not (namespaces or everything or salt is not None or tenant):
        raise click.UsageError("name a NAMESPACE, a --salt, a --tenant, or --all")
    if tenant and (namespaces or salt is not None):
        raise click.UsageError("--tenant is for all that its domain has: it stands without a NAMESPACE and --salt")
    deployment = resolve(Overrides(where["config_file"], where["run_dir"]), os.environ)
    if everything:
        _remove(deployment, "all", CacheClient.remove_all)
        return
    if tenant:
        domain = tenant_domain(deployment, tenant)
        _remove(deployment, tenant, partial(CacheClient.remove_domain, domain=domain))
    runs = _all_runs(deployment) if namespaces else ()
    chosen = [find_namespace(runs, each) for each in namespaces]
    if salt is not None:
        chosen.append(asyncio.run(prompt_keys(deployment.address("gateway"), (), salt, access)).namespace)
    for each in chosen:
        _remove(deployment, each.hex()[:SHORT_HEX], partial(CacheClient.remove, namespace=each))


@cache.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@salt_option
@click.option("--system", is_flag=True, help="As the system message of conversations, not as the beginning of a text.")
@click.option("--pin", is_flag=True, help="Keep them until `rm`, within memd.pin_fraction.")
@access_options
@deployment_options
def register(
    files: tuple[Path, ...], salt: str, *, system: bool, pin: bool, access: Access, **where: Path | None
) -> None:
    """Compute documents before they are asked for: prompts that begin with one find it.

    With a tenant's key they are that tenant's, or its domain's.
    """
    deployment = resolve(Overrides(where["config_file"], where["run_dir"]), os.environ)
    with connected(deployment, None, access) as client:
        documents = [read_document(client, path, as_system=system) for path in files]
        for document in documents:
            num_cached = compute(client, document, salt)
            pinned = ""
            if pin:
                keys = asyncio.run(prompt_keys(deployment.address("gateway"), document.token_ids, salt, access)).keys
                pinned = f", {keep(deployment, document, keys)} blocks newly pinned"
            click.echo(f"{document.path}: {len(document.token_ids)} tokens, {num_cached} were there{pinned}")


def compute(client: Client, document: Document, salt: str) -> int:
    """Has the document's KV computed, behind whatever clients wait for; how many of its tokens were there."""
    (answer,) = client.generate_once(
        document.token_ids, max_tokens=1, temperature=0.0, priority=BATCH_PRIORITY, cache_salt=salt
    )
    return answer.usage.num_cached_tokens


def keep(deployment: Deployment, document: Document, keys: Sequence[bytes]) -> int:
    """Pins a computed document's whole blocks in each replica that has them; how many were not pinned before.

    PinQuotaError; NotFoundError: none has them.
    """
    missing: list[NotFoundError] = []
    pinned: list[int] = []
    for memd in _memds(deployment):
        try:
            pinned.append(ask_cache(memd, partial(CacheClient.pin, keys=keys)))
        except NotFoundError as error:
            missing.append(error)
    if pinned:
        return sum(pinned)
    reason = (
        f"{document.path}: {missing[0]}: the pool was too full to keep it; register it again when there is less load"
    )
    raise NotFoundError(reason)


def find_namespace(runs: Sequence[CachedRun], beginning: str) -> bytes:
    """The one whose hexadecimal digits begin so. NotFoundError: none does. InvalidRequestError: several do."""
    found = sorted({run.namespace for run in runs if run.namespace.hex().startswith(beginning)})
    if not found:
        raise NotFoundError(f"nothing is cached in a namespace {beginning}...; `tandem cache ls` shows them")
    if len(found) > 1:
        raise InvalidRequestError("namespace", f"{beginning} begins {len(found)} of them; give more digits")
    return found[0]


def tenant_domain(deployment: Deployment, tenant: str) -> bytes:
    """What its namespaces have in common. ConfigError: there are no tenants, or nothing is kept of this one."""
    check_name(tenant)
    keys = asyncio.run(prompt_keys(deployment.address("gateway"), (), "", Access(), tenant=tenant))
    return domain_of(keys.namespace)


def ask_cache(memd: str, ask: Callable[[CacheClient], Awaitable[_T]]) -> _T:
    """One call of the memd at that address."""

    async def call() -> _T:
        async with CacheClient(memd) as client:
            return await ask(client)

    return asyncio.run(call())


def runs_table(runs: Sequence[CachedRun], block_size: int, limit: int) -> Table:
    """The newest `limit` runs, a row each; those of one age in the order of their prompt."""
    newest = sorted(runs, key=lambda run: run.idle_s)[:limit]
    table = Table("namespace", "prefix", "tokens", "blocks", "hits", "idle", "of", "kept", box=None, header_style="dim")
    for run in newest:
        first = run.first_ordinal * block_size
        kept = "pinned" if run.pinned else "in use" if run.num_leased_blocks else "cached"
        table.add_row(
            run.namespace.hex()[:SHORT_HEX],
            run.key.hex()[:SHORT_HEX],
            f"{first}-{first + run.num_blocks * block_size}",
            str(run.num_blocks),
            str(run.num_hits),
            f"{run.idle_s:.0f} s",
            run.kind.name.lower(),
            kept,
        )
    hidden = f", {len(runs) - len(newest)} not shown (--limit)" if len(runs) > len(newest) else ""
    prompts, segments = (_num_blocks(runs, kind) for kind in (ContentKind.PROMPT, ContentKind.SEGMENT))
    beside = f", {len(segments)} segments of {sum(segments)} blocks" if segments else ""
    num_tokens = sum(prompts) * block_size
    table.caption = f"{len(prompts)} prefixes of {sum(prompts)} blocks, {num_tokens} tokens{beside}{hidden}"
    return table


def statistics_table(storage: StorageStatistics) -> Table:
    """A row a number."""
    asked, claimed = storage.num_asked_tokens, storage.num_claimed_tokens
    rate = f"{100 * claimed / asked:.1f} %" if asked else "-"
    table = Table("", "", box=None, show_header=False)
    for name, value in (
        ("asked for", f"{asked} tokens"),
        ("found", f"{claimed} tokens, {rate}"),
        ("evictions", f"{storage.num_evictions} blocks"),
        ("cached", f"{storage.num_cached_blocks} of {storage.num_blocks} blocks"),
        ("in use", f"{storage.num_leased_blocks} blocks"),
        ("spare", f"{storage.num_spare_blocks} blocks"),
        ("free", f"{storage.num_free_blocks} blocks"),
        ("pinned", f"{storage.num_pinned_blocks} of {storage.num_pinnable_blocks} that can be"),
        ("of segments", f"{storage.num_segment_blocks} of {storage.max_segment_blocks} that can be"),
    ):
        table.add_row(name, value)
    return table


def _num_blocks(runs: Sequence[CachedRun], kind: ContentKind) -> list[int]:
    return [run.num_blocks for run in runs if run.kind is kind]


def _remove(deployment: Deployment, name: str, ask: Callable[[CacheClient], Awaitable[Withdrawal]]) -> None:
    gone = [ask_cache(memd, ask) for memd in _memds(deployment)]
    num_leased = sum(each.num_leased_blocks for each in gone)
    later = f", {num_leased} when their requests end" if num_leased else ""
    click.echo(f"{name}: {sum(each.num_freed_blocks for each in gone)} blocks are free{later}")


def _memds(deployment: Deployment) -> list[str]:
    """Of the replicas on this machine."""
    return [deployment.address("memd", replica) for replica in replica_dirs(deployment.run_dir)]


def _all_runs(deployment: Deployment) -> list[CachedRun]:
    return [run for memd in _memds(deployment) for run in ask_cache(memd, CacheClient.runs)]
