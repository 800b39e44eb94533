"""The engine ``presidio``: Microsoft's Presidio with a spaCy model, where both are installed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from typing import Any

from clinstack.errors import InputError
from clinstack.privacy.identifiers.identifier import Identifier

NAME = "presidio"
MODEL = "en_core_web_lg"
"""The spaCy model that Presidio itself takes where none is named; ``presidio:en_core_web_sm`` names another."""
KIND_OF = {
    "PERSON": "name",
    "LOCATION": "address",
    "ORGANIZATION": "hospital",
    "DATE_TIME": "date",
    "PHONE_NUMBER": "phone",
    "EMAIL_ADDRESS": "email",
    "URL": "url",
    "IP_ADDRESS": "ip",
    "US_SSN": "ssn",
    "MEDICAL_LICENSE": "license",
    "US_DRIVER_LICENSE": "license",
    "US_PASSPORT": "license",
    "US_BANK_NUMBER": "account",
    "CREDIT_CARD": "account",
    "IBAN_CODE": "account",
    "US_ITIN": "ssn",
    "US_MBI": "plan",
    "US_NPI": "license",
    "MAC_ADDRESS": "device",
    "UK_NHS": "mrn",
    "MRN": "mrn",
}
"""Presidio's names of what counts; its other kinds, such as nationality, are no Safe Harbor identifiers."""
_HAS_DIGIT = re.compile(r"\d")
LEAST_SCORE = 0.4
"""Of Presidio; its weakest patterns, such as a bank number of any eight digits, stay below."""


class PresidioEngine:
    """Finds what Presidio's analyzer finds.

    A date without a digit ("yesterday", "two weeks") is left out.

    Parameters
    ----------
    analyzer : object
        With ``analyze(text, language, score_threshold)`` as ``presidio_analyzer.AnalyzerEngine`` has it.
    """

    name = NAME

    def __init__(self, analyzer: Any) -> None:
        self._analyzer = analyzer

    def find(self, text: str) -> Iterator[Identifier]:
        """Yield findings, which may overlap."""
        for result in self._analyzer.analyze(text=text, language="en", score_threshold=LEAST_SCORE):
            kind = KIND_OF.get(result.entity_type)
            if kind is None or (kind == "date" and not _HAS_DIGIT.search(text[result.start : result.end])):
                continue
            yield Identifier(result.start, result.end, kind, NAME)


def open_presidio(model: str = MODEL) -> PresidioEngine:
    """Open Presidio with a spaCy model that is installed; nothing is downloaded.

    Raises
    ------
    InputError
        If Presidio, spaCy or the model is not installed.
    """
    try:
        spacy, analyzer, engines = map(
            import_module, ("spacy.util", "presidio_analyzer", "presidio_analyzer.nlp_engine")
        )
    except ImportError as error:
        raise InputError(
            f"engine {NAME}: {error.name or 'presidio_analyzer'} is not installed; pip install 'clinstack[scan]'."
        ) from None
    # Presidio would download a model that is missing.
    if not spacy.is_package(model):
        raise InputError(
            f"engine {NAME}: the spaCy model {model} is not installed, and nothing is downloaded here; install its "
            f"wheel from spaCy's releases, or name one that is installed as {NAME}:MODEL."
        )
    # Its recognizers of addresses would fetch a list of domains; the one inside the package serves.
    with suppress(ImportError):
        domains: Any = import_module("tldextract.tldextract")
        domains.TLD_EXTRACTOR = domains.TLDExtract(suffix_list_urls=())
    configuration = {"nlp_engine_name": "spacy", "models": [{"lang_code": "en", "model_name": model}]}
    provider = engines.NlpEngineProvider(nlp_configuration=configuration)
    return PresidioEngine(analyzer.AnalyzerEngine(nlp_engine=provider.create_engine(), supported_languages=["en"]))
