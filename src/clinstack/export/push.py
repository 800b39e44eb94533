"""``--push``: an export to the Hugging Face hub, only when asked, and where the lineage of its data lets it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clinstack.errors import ClinstackError, InputError
from clinstack.model.data_lineage import DataSource, openly_publishable
from clinstack.offline import refuse_network

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def refuse_push(
    repository: str, data: Sequence[DataSource] | None, *, force: bool, leaking: Sequence[str] = ()
) -> None:
    """Say why an export must not leave this machine; before it is made, and before anything is sent.

    Parameters
    ----------
    repository : str
    data : sequence of DataSource or None
        What the stack was trained on.
    force : bool
    leaking : sequence of str
        Stacks whose audit found that they give away what they were trained on.

    Raises
    ------
    InputError
        If the name is none, the hub is switched off, or without ``force`` if an audit found a leak, or the data forbids
        it or is not known to allow it.
    """
    from huggingface_hub import constants

    if _NAME.fullmatch(repository) is None:
        raise InputError(f"--push: {repository!r} is no name of the form ORGANIZATION/NAME.")
    refuse_network("--push", "Leave out --push; the folder at --out can be carried elsewhere.")
    if constants.is_offline_mode():
        raise InputError("--push: the hub is switched off here (HF_HUB_OFFLINE); unset it, or leave out --push.")
    if leaking and not force:
        raise InputError(
            f"--push: the audit found that {', '.join(leaking)} gives away what it was trained on (audit.json in the "
            "stack's folder). Train it otherwise, such as privately, and audit it again; with --force it is pushed all "
            "the same."
        )
    verdict = openly_publishable(data)
    if verdict is True or force:
        return
    if verdict is False:
        against = sorted({str(source.source) for source in data or () if source.openly_publishable is False})
        raise InputError(
            f"--push: this stack was trained on {', '.join(against)}, whose data use agreement does not let weights "
            "that have read it be published. Share it as the agreement says; with --force it is pushed all the same."
        )
    raise InputError(
        "--push: it is not known whether the data that this stack was trained on lets weights be published (data in "
        "stack.json). Who answers for the data decides; with --force it is pushed all the same."
    )


def push(folder: Path, repository: str, *, public: bool) -> str:
    """Upload a folder with the hub's own token, and return the address.

    Raises
    ------
    InputError
        If a private repository was asked for and there is a public one of that name.
    ClinstackError
        If the hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError, LocalTokenNotFoundError  # type: ignore[attr-defined]

    api: Any = HfApi()
    try:
        api.create_repo(repository, private=not public, exist_ok=True, repo_type="model")
        if not public and not api.repo_info(repository, repo_type="model").private:
            raise InputError(
                f"--push: {repository} is there already and public. Nothing was uploaded; name another, or add "
                "--public."
            )
        done = api.upload_folder(
            repo_id=repository, folder_path=str(folder), repo_type="model", commit_message="Exported by clinstack"
        )
    except LocalTokenNotFoundError:
        raise InputError("--push: there is no token for the hub here; `hf auth login` asks for one.") from None
    except HTTPError as error:
        # Of the hub, or of a connection that did not come about.
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ClinstackError(f"--push: the hub did not take {repository} ({first}). {folder} is complete.") from None
    return str(getattr(done, "repo_url", None) or f"{api.endpoint}/{repository}")
