"""How a command fails: one line on stderr and exit status 1, never a traceback for what can be foreseen."""

from typing import Any

import click
import grpc

from tandem.errors import TandemError
from tandem.rpc.status import error_from_rpc


class ReportingGroup(click.Group):
    """A group whose commands may raise TandemError and gRPC's errors. Usage errors keep click's status 2."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; known errors become click's, which prints them and exits."""
        try:
            return super().invoke(ctx)
        except TandemError as error:
            raise click.ClickException(_one_line(str(error))) from error
        except grpc.RpcError as error:
            raise click.ClickException(_one_line(str(_from_rpc(error)))) from error


def _from_rpc(error: grpc.RpcError) -> Exception:
    return error_from_rpc(error) if isinstance(error, grpc.Call) else error


def _one_line(text: str) -> str:
    return " ".join(text.split())
