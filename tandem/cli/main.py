"""The `tandem` command."""

import click

from tandem import __version__
from tandem.cli.bench import bench
from tandem.cli.cache import cache
from tandem.cli.chat import chat
from tandem.cli.controller import controller
from tandem.cli.doctor import doctor
from tandem.cli.failures import ReportingGroup
from tandem.cli.generate import generate
from tandem.cli.keys import keys
from tandem.cli.lifecycle import down, restart, up
from tandem.cli.logs import logs
from tandem.cli.model import model
from tandem.cli.status import status
from tandem.cli.top import top


@click.group(cls=ReportingGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="tandem")
def main() -> None:
    """Serve a large language model: five services over one memory."""


for command in (up, down, status, top, controller, doctor, generate, chat, restart, logs, model, cache, keys, bench):
    main.add_command(command)

if __name__ == "__main__":
    main()
