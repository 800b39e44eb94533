"""Write the software bill of materials: what clinstack needs to run, and the models that come with it (CycloneDX 1.6).

``cyclonedx-py`` describes the environment that runs this script; what is there for development only is left out, and
the embedded base models are put in with the hash of each file. The same environment gives the same file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from clinstack import __version__
from clinstack.files import read_json
from clinstack.model.base import EMBEDDED_FOLDERS
from clinstack.model.manifest import MANIFEST_FILE

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("align", "gguf", "postgres", "private", "quantized", "serve", "synthesize")
"""All but those for development and documentation."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("sbom.cdx.json"), help="file to write (default: %(default)s)")
    parser.add_argument(
        "--extras",
        nargs="*",
        default=[extra for extra in EXTRAS if is_complete(extra)],
        help="extras to count in (default: those that are installed)",
    )
    arguments = parser.parse_args()
    document = bill(arguments.extras)
    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    wrong = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if wrong is not None:
        sys.exit(f"The bill is not valid CycloneDX 1.6: {wrong}")
    arguments.out.write_text(text, encoding="utf-8")
    models = len(EMBEDDED_FOLDERS)
    packages = len(document["components"]) - models
    extras = ", ".join(arguments.extras) or "no extras"
    print(f"{arguments.out}: {packages} packages ({extras}), {models} models; valid CycloneDX 1.6")


def bill(extras: Iterable[str]) -> dict[str, Any]:
    """Return the bill of the environment that runs this, as CycloneDX writes it in JSON."""
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--pyproject", str(ROOT / "pyproject.toml")]
    command += ["--mc-type", "application", "--spec-version", "1.6", "--output-reproducible", "--output-format", "JSON"]
    done = subprocess.run([*command, sys.executable], capture_output=True, text=True, check=True)
    document: dict[str, Any] = without_places(json.loads(done.stdout))
    wanted = needed("clinstack", extras)
    kept = [one for one in document["components"] if canonicalize_name(one["name"]) in wanted]
    references = {document["metadata"]["component"]["bom-ref"], *(one["bom-ref"] for one in kept)}
    models = [model_component(name) for name in sorted(EMBEDDED_FOLDERS)]
    document["components"] = sorted(kept, key=lambda one: str(one["bom-ref"])) + models
    document["metadata"]["component"]["version"] = __version__
    links = []
    for one in document.get("dependencies", []):
        if one["ref"] in references:
            links.append({**one, "dependsOn": sorted(set(one.get("dependsOn", [])) & references)})
            if one["ref"] == document["metadata"]["component"]["bom-ref"]:
                links[-1]["dependsOn"] += [model["bom-ref"] for model in models]
    document["dependencies"] = links + [{"ref": model["bom-ref"], "dependsOn": []} for model in models]
    return document


def needed(package: str, extras: Iterable[str]) -> set[str]:
    """Return the names of all packages that a package needs to run, itself left out."""
    found: set[str] = set()
    waiting = [(package, tuple(extras))]
    seen: set[tuple[str, tuple[str, ...]]] = set()
    while waiting:
        name, chosen = waiting.pop()
        if (name, chosen) in seen:
            continue
        seen.add((name, chosen))
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # optional, and not in this environment
        for requirement in map(Requirement, lines):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *chosen)):
                found.add(canonicalize_name(requirement.name))
                waiting.append((canonicalize_name(requirement.name), tuple(sorted(requirement.extras))))
    return found - {package}


def is_complete(extra: str) -> bool:
    """Whether every package of an extra is installed."""
    return all(installed(name) for name in needed("clinstack", [extra]) - needed("clinstack", []))


def installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def model_component(name: str) -> dict[str, Any]:
    """Return an embedded base model as a component; hashes from its manifest, which is compared when it is opened."""
    record = read_json(EMBEDDED_FOLDERS[name] / MANIFEST_FILE)
    files = [
        {
            "type": "file",
            "name": f"{EMBEDDED_FOLDERS[name].name}/{file}",
            "bom-ref": f"model:{name}/{file}",
            "hashes": [{"alg": "SHA-256", "content": entry["sha256"]}],
        }
        for file, entry in sorted(record["files"].items())
    ]
    weights = record["files"]["model.safetensors"]["sha256"]
    return {
        "type": "machine-learning-model",
        "name": f"clinstack-{name}",
        "version": __version__,
        "bom-ref": f"model:{name}",
        "description": "A toy base model of public-domain English texts, in the package of clinstack.",
        "hashes": [{"alg": "SHA-256", "content": weights}],
        "licenses": [{"license": {"id": "Apache-2.0"}}],
        "properties": [{"name": "clinstack:fingerprint", "value": record["fingerprint"]}],
        "components": files,
    }


def without_places(value: Any) -> Any:
    """Return a document without what names this machine's folders: they differ from one to the next."""
    if isinstance(value, dict):
        kept = {key: without_places(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item not in ([], {})} if kept != value else value
    if isinstance(value, list):
        return [without_places(item) for item in value if "file://" not in json.dumps(item) or has_name(item)]
    return value


def has_name(item: Any) -> bool:
    """Whether it is a component of its own, not a reference of one."""
    return isinstance(item, dict) and "bom-ref" in item


if __name__ == "__main__":
    main()
