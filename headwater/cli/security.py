"""`headwater passwd` and `headwater ca`: users with passwords, and certificates of devices."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from headwater.cli.face import DataDirOption, fail, failures, out, settings_of

ca_app = typer.Typer(no_args_is_help=True, help="A certificate authority for devices.")

TenantOption = Annotated[str | None, typer.Option(help="Tenant, `${tenant}` in policies.")]
PolicyOption = Annotated[
    list[str] | None,
    typer.Option("--policy", help="Name of a policy; may be repeated; default `auth.policies`."),
]
DirectoryOption = Annotated[
    Path | None, typer.Option("--dir", help="Directory of the authority; default `ca` in the data directory.")
]


@failures
def passwd(
    file: Annotated[Path, typer.Argument(help="File of users, as `auth.password.file` names it.")],
    user: Annotated[str, typer.Argument(help="User name.")],
    delete: Annotated[bool, typer.Option("--delete", help="Remove the user.")] = False,
    tenant: TenantOption = None,
    policy: PolicyOption = None,
) -> None:
    """Add a user, change its password, or remove it. The password is asked for, or the first line of standard input."""
    from headwater.gateway import password

    if delete:
        if not password.remove_user(file, user):
            fail(f"removing user {user!r} from {file}: there is no such user")
        out.print(f"removed {user}", highlight=False, markup=False)
        return
    if sys.stdin.isatty():
        secret = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    else:
        secret = sys.stdin.readline().removesuffix("\n")
    try:
        new = password.set_user(file, user, secret, tenant, policy)
    except ValueError as error:
        fail(f"setting user {user!r} in {file}: {error}")
    out.print(f"{'added' if new else 'changed'} {user}", highlight=False, markup=False)


@ca_app.command("init")
@failures
def init(
    directory: DirectoryOption = None,
    data_dir: DataDirOption = None,
    name: Annotated[str, typer.Option(help="Common name of the authority.")] = "Headwater CA",
) -> None:
    """Make a certificate authority: key, certificate, empty revocation list, empty table."""
    from headwater.ca import Authority

    where = _directory(directory, data_dir)
    made = Authority(where).init(name)
    out.print(
        f"wrote {made}; its key {where / 'ca-key.pem'} is the secret of all devices",
        highlight=False,
        markup=False,
    )


@ca_app.command("issue")
@failures
def issue(
    client_id: Annotated[str, typer.Argument(help="Client id of the device, its common name.")],
    directory: DirectoryOption = None,
    data_dir: DataDirOption = None,
    out_: Annotated[
        Path, typer.Option("--out", help="Directory for CLIENT_ID.pem and CLIENT_ID.key.")
    ] = Path(),
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long it is valid.")] = 365,
    tenant: TenantOption = None,
    policy: PolicyOption = None,
) -> None:
    """Issue a device's key and certificate and enter it in the table."""
    from headwater.ca import Authority

    authority = Authority(_directory(directory, data_dir))
    try:
        issued = authority.issue(client_id, out_, days, tenant or "", policy)
    except ValueError as error:
        fail(str(error))
    out.print(f"wrote {issued.certificate} and {issued.key}", highlight=False, markup=False)
    out.print(f"fingerprint {issued.fingerprint}", highlight=False, markup=False)


@ca_app.command("revoke")
@failures
def revoke(
    name: Annotated[str, typer.Argument(help="Fingerprint, or client id: then all its certificates.")],
    directory: DirectoryOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Revoke certificates in the table and in the revocation list."""
    from headwater.ca import Authority

    revoked = Authority(_directory(directory, data_dir)).revoke(name)
    for fingerprint in revoked:
        out.print(f"revoked {fingerprint}", highlight=False, markup=False)
    if not revoked:
        out.print(f"{name} was revoked before", highlight=False, markup=False)


@ca_app.command("crl")
@failures
def crl(directory: DirectoryOption = None, data_dir: DataDirOption = None) -> None:
    """Write the revocation list anew; it is valid for 30 days."""
    from headwater.ca import Authority

    out.print(
        f"wrote {Authority(_directory(directory, data_dir)).renew_crl()}", highlight=False, markup=False
    )


def _directory(directory: Path | None, data_dir: Path | None) -> Path:
    return directory or settings_of(None, data_dir, None).data_dir / "ca"
