"""What the docs and `examples/serving/` tell people to run: verbs and options exist, ports agree, prompts are those."""

from __future__ import annotations

import configparser
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples" / "serving"
DOCS = ROOT / "docs" / "serving.md"


def commands() -> dict[str, set[str]]:
    """Return the options of each verb of the command line; groups have theirs as "verb subverb"."""
    import typer.main

    from clinstack.cli import app

    found: dict[str, set[str]] = {}
    waiting: list[tuple[str, Any]] = [("", typer.main.get_command(app))]
    while waiting:
        name, command = waiting.pop()
        waiting += [(f"{name} {child}".strip(), below) for child, below in getattr(command, "commands", {}).items()]
        options = {option for item in command.params for option in (*item.opts, *item.secondary_opts)}
        found[name] = {option for option in options if option.startswith("-")} | {"--help"}
    return found


def unit() -> configparser.ConfigParser:
    """Return the systemd unit; a backslash at a line's end goes on with the next."""
    parser = configparser.ConfigParser(strict=True, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((EXAMPLES / "clinstack@.service").read_text().replace("\\\n", " "))
    return parser


def container_arguments() -> list[str]:
    import json

    words: list[str] = []
    for line in (EXAMPLES / "Containerfile").read_text().splitlines():
        if line.startswith(("ENTRYPOINT ", "CMD ")):
            words += json.loads(line.split(" ", 1)[1])
    return words


def in_docs() -> Iterator[list[str]]:
    """Yield each call of clinstack in the page's code blocks."""
    for block in re.findall(r"```bash\n(.*?)```", DOCS.read_text(), flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if (at := re.search(r"\bclinstack (?=[a-z])", line)) is not None and not line.strip().startswith("#"):
                yield shlex.split(line[at.start() :].split("…")[0], comments=True)


def calls() -> list[list[str]]:
    start = shlex.split(unit()["Service"]["ExecStart"])
    return [["clinstack", *start[1:]], container_arguments(), *in_docs()]


def test_every_command_exists_with_its_options() -> None:
    known, seen = commands(), set()
    for call in calls():
        words = [word for word in call[1:3] if not word.startswith("-")]
        verb = max(" ".join(words[:count]) for count in range(1, len(words) + 1) if " ".join(words[:count]) in known)
        seen.add(verb)
        for word in call[1:]:
            if word.startswith("--"):
                assert word.split("=")[0] in known[verb], f"{' '.join(call)}: {word}"
    assert {"serve", "export"} <= seen


def test_the_settings_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from clinstack.cli import app

    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text("0123456789abcdef0123")
    taken: list[Any] = []
    monkeypatch.setattr("clinstack.serve.found.find_stacks", lambda *_, **__: {"mortality": tmp_path})
    monkeypatch.setattr("clinstack.cli_serve.run_server", taken.append)
    for call in (shlex.split(unit()["Service"]["ExecStart"].replace("%i", "8001"))[1:], container_arguments()[1:]):
        arguments = [str(token) if word == "/etc/clinstack/token" else word for word in call]
        told = CliRunner().invoke(app, arguments)
        assert told.exit_code == 0, told.exception
    service, container = taken
    assert (service.host, service.port, service.is_loopback) == ("127.0.0.1", 8001, True)
    assert service.trusted_proxies == ("127.0.0.1",)
    assert service.token.get_secret_value() == token.read_text()
    assert (container.host, container.port, container.allow_remote) == ("0.0.0.0", 8000, True)
    assert not container.no_token


def test_ports_limits_and_times_agree() -> None:
    from clinstack.serve.settings import ServeSettings

    defaults = {name: field.default for name, field in ServeSettings.model_fields.items()}
    service = unit()["Service"]
    words = shlex.split(service["ExecStart"])
    drain = float(words[words.index("--drain-s") + 1])
    assert float(service["TimeoutStopSec"]) > drain
    assert words[words.index("--state") + 1].startswith("/var/lib/" + service["StateDirectory"])
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert words[words.index("--port") + 1] == "%i"
    nginx, caddy = (EXAMPLES / "nginx.conf").read_text(), (EXAMPLES / "Caddyfile").read_text()
    for text in (nginx, caddy):
        lines = [line for line in text.splitlines() if not line.strip().startswith("#")]
        assert "\n".join(lines).count("{") == "\n".join(lines).count("}")
        assert set(re.findall(r"127\.0\.0\.1:(\d+)", text)) == {"8001", "8002"}
        assert "/metrics" in text
        assert "/v1/stacks" in text
    assert int(re.search(r"client_max_body_size (\d+);", nginx)[1]) == defaults["max_body_bytes"]  # type: ignore[index]
    assert int(re.search(r"client_body_buffer_size (\d+)m;", nginx)[1]) * 2**20 > defaults["max_body_bytes"]  # type: ignore[index]
    assert int(re.search(r"max_size (\d+)", caddy)[1]) == defaults["max_body_bytes"]  # type: ignore[index]
    assert float(re.search(r"proxy_read_timeout (\d+)s;", nginx)[1]) > defaults["timeout_s"]  # type: ignore[index]
    assert "health_uri /readyz" in caddy
    stop = re.search(r"--stop-timeout (\d+)", (EXAMPLES / "Containerfile").read_text())
    assert stop is not None
    assert float(stop[1]) > defaults["drain_s"]


def test_the_image_holds_no_runs() -> None:
    text = (EXAMPLES / "Containerfile").read_text()
    copied = re.findall(r"^COPY (.*) \S+$", text, flags=re.MULTILINE)
    names = [name for line in copied for name in line.split()]
    assert "." not in names
    assert all((ROOT / name).exists() for name in names)


@pytest.mark.parametrize("template", ["clinstack", "asclepius", "phi2"])
@pytest.mark.parametrize("system", [None, "Answer from the note."])
def test_the_plain_prompt_has_the_tokens_of_training(template: str, system: str | None) -> None:
    from clinstack.model.base import find_base, load_tokenizer
    from clinstack.recipe import PromptRecipe
    from clinstack.tokens.prompts import Prompt, encode_prompts

    tokenizer = load_tokenizer(find_base("embedded"))
    prompt = Prompt.of(PromptRecipe(template=template, system=system, chat_template="never"), tokenizer)
    note, question = "CHIEF COMPLAINT: chest pain.\n\nHe takes {aspirin}.", "Which drugs?"
    [expected] = encode_prompts(tokenizer, prompt, [note], [question], 512).ids
    messages = [{"role": "system", "content": prompt.system}] if prompt.system else []
    messages.append(
        {"role": "user", "content": prompt.template.replace("{note}", note).replace("{question}", question)}
    )
    own_cue = {} if template == "clinstack" else {"cue": prompt.cue}
    found = tokenizer.apply_chat_template(
        messages,
        chat_template=(EXAMPLES / "plain-prompt.jinja").read_text(),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
        **own_cue,
    )
    assert list(found) == expected
