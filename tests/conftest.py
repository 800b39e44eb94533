"""What every test runs under: no network, and the model hub switched to offline."""

from __future__ import annotations

import os

# Read once, when huggingface_hub and transformers are imported: set before any test module imports them, and
# inherited by the processes that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
# Lines of output are as wide however long the paths of temporary folders are.
os.environ["COLUMNS"] = "160"
# Tests run beside each other: a second thread of each would wait for cores that the others have.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import socket
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from clinstack.recipe import AdapterRecipe
from clinstack.tasks import Task

if TYPE_CHECKING:
    from clinstack.model.stack import Stack


def _is_loopback(host: object) -> bool:
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    if host in (None, "", "localhost"):
        return True
    try:
        return ip_address(str(host).partition("%")[0]).is_loopback
    except ValueError:
        return False


def _allow_only_loopback(address: object) -> None:
    host = address[0] if isinstance(address, tuple) else address
    if not _is_loopback(host):
        # Not an Exception, so that no `except` around a download takes it for "offline, use the cache".
        pytest.fail(f"A test tried to reach {host!r} over the network; tests run on local files only.")


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Fail whatever connects anywhere but to this machine; of the session, so that it precedes every other fixture."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex
    create_connection, getaddrinfo = socket.create_connection, socket.getaddrinfo

    def local_connect(self: socket.socket, address: Any) -> None:
        if self.family != getattr(socket, "AF_UNIX", None):
            _allow_only_loopback(address)
        return connect(self, address)

    def local_connect_ex(self: socket.socket, address: Any) -> int:
        if self.family != getattr(socket, "AF_UNIX", None):
            _allow_only_loopback(address)
        return connect_ex(self, address)

    def local_create_connection(address: tuple[str | None, int], *args: Any, **kwargs: Any) -> socket.socket:
        _allow_only_loopback(address)
        return create_connection(address, *args, **kwargs)

    def local_getaddrinfo(host: bytes | str | None, *args: Any, **kwargs: Any) -> list[Any]:
        _allow_only_loopback(host)
        return getaddrinfo(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", local_connect)
        patch.setattr(socket.socket, "connect_ex", local_connect_ex)
        patch.setattr(socket, "create_connection", local_create_connection)
        patch.setattr(socket, "getaddrinfo", local_getaddrinfo)
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference models and texts beside the checkout; tests that need it skip where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"no folder shared beside the checkout ({folder.parent.name}/shared): reference data are absent")
    return folder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama of two layers and a byte-level tokenizer whose pad, bos and eos tokens differ."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.set_num_threads(1)  # in so small a model, waiting for a second thread costs more than it brings
    folder = tmp_path_factory.mktemp("bases") / "tiny"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the patient was admitted with chest pain and shortness of breath " * 4], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def perturbed() -> Callable[..., Stack]:
    """Return a function that adds seeded noise to a stack's trainable tensors, as if it had been trained."""
    import torch

    def perturb(stack: Stack, seed: int = 1) -> Stack:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in stack.trainable_parameters().values():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator).to(parameter))
        return stack

    return perturb


@pytest.fixture(scope="session")
def clinical(tiny_base: Path, perturbed: Callable[..., Stack], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved Stack with one adapter, ``clinical``, that is not zero: what pretraining leaves."""
    from clinstack.model.stack import Stack

    folder = tmp_path_factory.mktemp("clinical") / "stack"
    recipe = AdapterRecipe(name="clinical", rank=4, alpha=8)
    perturbed(Stack.build(str(tiny_base), [recipe])).save(folder)
    return folder


@pytest.fixture(scope="session")
def mortality() -> Task:
    """A binary task."""
    return Task("mortality", "binary", ("alive", "dead"))


@pytest.fixture(scope="session")
def table3(clinical: Path) -> dict[str, list[AdapterRecipe]]:
    """The six specs of the paper's Table 3 by their labels."""
    task = AdapterRecipe(name="task", rank=2, alpha=4)
    frozen = AdapterRecipe(name="clinical", path=str(clinical))
    trainable = AdapterRecipe(name="clinical", path=str(clinical), trainable=True)
    return {
        "head": [],
        "lora": [task],
        "clinical-frozen": [frozen],
        "clinical-frozen+lora": [frozen, task],
        "clinical-trainable": [trainable],
        "clinical-trainable+lora": [trainable, task],
    }


@pytest.fixture(scope="session")
def tiny_notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of Notes for `tiny_base`; a test that changes it copies it first."""
    from tiny_notes import write_tiny_notes

    return write_tiny_notes(tmp_path_factory.mktemp("notes") / "data")


@pytest.fixture(scope="session")
def trained(
    tiny_base: Path, perturbed: Callable[..., Stack], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Return a function from a spec to a saved stack with that adapter, ``clinical``, as if it had been trained."""
    from clinstack.model.stack import Stack
    from methods import new

    made: dict[str, Path] = {}

    def folder(spec: str) -> Path:
        if spec not in made:
            made[spec] = tmp_path_factory.mktemp(spec) / "stack"
            perturbed(Stack.build(str(tiny_base), [new(spec)])).save(made[spec])
        return made[spec]

    return folder


@pytest.fixture(scope="module")
def saved(
    tiny_base: Path,
    table3: dict[str, list[AdapterRecipe]],
    mortality: Task,
    perturbed: Callable[..., Stack],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Path]:
    """Saves a stack once for each label, for tests of exports; see `export_checks.saver`."""
    from export_checks import saver

    return saver(tiny_base, table3, mortality, perturbed, tmp_path_factory.mktemp("stacks"))
