"""The web page in a real browser, on the real server with tiny stacks; and its files as they are served."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import numpy as np
import pytest

from browser import FINDINGS, FOCUSABLE, LOW_CONTRAST, Scheme, Visit, find_chromium, running_browser, serving, visiting
from clinstack.evaluate.classification import SplitScores, fit_on_validation
from clinstack.recipe import AdapterRecipe
from clinstack.recipe.prompt import PromptRecipe
from tiny_notes import TASKS

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Route

    from clinstack.model.stack import Stack

pytest.importorskip("fastapi", reason="the extra serve is not installed")
expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect
expect.set_options(timeout=20_000)

TOKEN = "a-token-for-this-test-only"
NOTE = "the patient was admitted with zebra pain and shortness of breath"
CALIBRATED = ("mortality", "diagnoses")
FOLDER = Path(__file__).resolve().parents[1] / "src" / "clinstack" / "serve" / "page"


# ---------------------------------------------------------------------- the files


def test_every_file_is_served_without_a_token_and_nothing_else() -> None:
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    from clinstack.serve import page

    app = FastAPI()
    page.mount(app)
    client = TestClient(app)
    assert {file.name for file in FOLDER.iterdir()} == set(page.CONTENT_TYPES)
    for path in page.PUBLIC_PATHS:
        answer = client.get(path)
        name = path.removeprefix("/page/") if path != "/" else "index.html"
        assert answer.status_code == 200
        assert answer.content == (FOLDER / name).read_bytes()
        assert answer.headers["content-type"] == page.CONTENT_TYPES[name]
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert client.head(path).status_code == 200
    for path in ("/page/index.html", "/page/../page.py", "/page/%2e%2e/page.py", "/page/", "/page"):
        assert client.get(path).status_code == 404
    assert client.post("/").status_code == 405
    assert not client.get("/openapi.json").json()["paths"]  # the API's document is of the API


def test_no_file_names_another_place_or_turns_text_into_markup() -> None:
    for file in FOLDER.iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//[a-z]|@import|url\(", text), file.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|localStorage", text), (
            file.name
        )
    page = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?![^>]*\ssrc=)", page)
    # A form that the browser sends by itself puts its named fields into the address.
    assert not re.search(r"<(?:input|textarea|select)[^>]*\sname=", page)


def test_the_samples_are_marked_as_invented() -> None:
    kept = json.loads((FOLDER / "samples.json").read_text(encoding="utf-8"))
    assert kept["synthetic"] is True
    assert len(kept["samples"]) == 3
    for sample in kept["samples"]:
        assert "invented patient" in sample["text"].splitlines()[0]
        assert sample["questions"]


# ---------------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def stacks(
    tiny_base: Path, perturbed: Callable[..., Stack], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Three classifiers of each kind, two of them calibrated, and a stack that answers questions."""
    from clinstack.model.reading import Reading
    from clinstack.model.stack import Stack
    from clinstack.tokens.prompts import Prompt

    folder = tmp_path_factory.mktemp("page")
    random = np.random.default_rng(0)
    made = {}
    for task in TASKS.values():
        stack = perturbed(Stack.build(str(tiny_base), [AdapterRecipe(name="task", rank=2, alpha=4)], task))
        stack.reading = Reading(max_tokens=64)
        if task.name in CALIBRATED:
            rows = 80
            logits = random.normal(size=(rows, len(task.classes)))
            drawn = random.random((rows, len(task.classes))) < 1 / (1 + np.exp(-logits))
            labels: list[Any] = [int(row[1]) for row in drawn]
            if task.kind == "multilabel":
                labels = [[name for name, has in zip(task.classes, row, strict=True) if has] for row in drawn]
            patients = [f"p{row}" for row in range(rows)]
            stack.calibration = fit_on_validation(task, SplitScores(labels, logits, patients))
        made[task.name] = folder / task.name
        stack.save(made[task.name])
    stack = perturbed(Stack.build(str(tiny_base), [AdapterRecipe(name="instruct", rank=2, alpha=4)]))
    stack.prompt = Prompt.of(PromptRecipe(system=""), stack.tokenizer)
    made["instruct"] = folder / "instruct"
    stack.save(made["instruct"])
    return made


@pytest.fixture(scope="module")
def address(stacks: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The real application with the real queue and model on a port of this machine."""
    from clinstack.serve.app import create_app
    from clinstack.serve.queue import RequestQueue
    from clinstack.serve.settings import serve_settings
    from clinstack.serve.shared_base import SharedBase

    settings = serve_settings({"stacks": stacks, "ui": True, "state": tmp_path_factory.mktemp("state")})
    queue = RequestQueue(SharedBase.open(stacks, device="cpu"), settings)
    with serving(create_app(queue, settings, token=TOKEN)) as place:
        yield place


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if find_chromium() is None:
        pytest.skip("no Chromium on PATH: the web page is tested in one")
    with running_browser() as started:
        yield started


def asked(address: str, what: str, **body: object) -> dict[str, Any]:
    """Return what the API itself answers."""
    request = Request(
        f"{address}/v1/{what}",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"},
    )
    with urlopen(request, timeout=20) as answer:
        read: dict[str, Any] = json.load(answer)
    return read


def predict_by_keyboard(visit: Visit) -> None:
    """Type the note and predict, without a mouse."""
    visit.page.wait_for_selector("#task-list input")
    visit.tab_to("note")
    visit.page.keyboard.type(NOTE)
    visit.page.keyboard.press("Control+Enter")
    visit.page.wait_for_selector(".scores")


def test_a_note_typed_on_the_keyboard_gets_the_scores_of_the_api(
    browser: Browser, address: str, tmp_path: Path
) -> None:
    with visiting(browser, address, TOKEN) as visit:
        page = visit.page
        predict_by_keyboard(visit)
        page.screenshot(path=tmp_path / "page.png", full_page=True)

        prediction = asked(address, "predict", note=NOTE)["predictions"][0]
        shown = visit.scores()
        assert set(shown) == set(TASKS)
        for name, task in prediction["tasks"].items():
            wanted = {one["name"]: one["probability"] for one in task["classes"]}
            if task["kind"] == "binary":
                del wanted[task["classes"][0]["name"]]
            assert shown[name] == pytest.approx(wanted, abs=1e-6)
            group = page.locator(f"tbody[data-task={name}]")
            said = group.locator("tr.task").inner_text()
            assert ("not calibrated" in said) == (name not in CALIBRATED)
            intervals = [one["interval"] for one in task["classes"][1 if task["kind"] == "binary" else 0 :]]
            assert group.locator(".interval").count() == group.locator(".track u").count() == sum(map(bool, intervals))
            marks = [one["threshold"] for one in task["classes"] if one["threshold"] is not None]
            assert group.locator(".track s").count() == len(marks)
        died = prediction["tasks"]["mortality"]["classes"][1]
        assert died["interval"]
        assert died["threshold"]
        assert (
            f"{prediction['tokens']} of 64 tokens; {prediction['cut_tokens']} cut"
            in page.locator("#tokens").inner_text()
        )
        assert prediction["tasks"]["mortality"]["stack"] in page.locator("#fingerprints").text_content()
        assert "3 tasks are ready" in page.locator("[role=status]").text_content()

        assert {urlsplit(url)[:2] for url in visit.requests} == {urlsplit(address)[:2]}
        assert not any(word in url for url in visit.requests for word in ("zebra", TOKEN))
        assert page.url == f"{address}/"  # the token has gone from the address bar
        kept = page.evaluate(
            "JSON.stringify([{ ...sessionStorage }, { ...localStorage }, document.cookie, history.state])"
        )
        assert "zebra" not in kept
        assert visit.complaints == []


def test_figures_are_marked_when_the_note_has_changed(browser: Browser, address: str) -> None:
    with visiting(browser, address, TOKEN) as visit:
        predict_by_keyboard(visit)
        assert visit.page.locator("#stale").is_hidden()
        visit.page.keyboard.type(" today")
        assert visit.page.locator("#stale").is_visible()
        visit.page.keyboard.press("Control+Enter")
        visit.page.wait_for_selector("#stale", state="hidden")
        wanted = asked(address, "predict", note=f"{NOTE} today")["predictions"][0]["tasks"]["mortality"]["classes"][1]
        assert visit.scores()["mortality"]["died"] == pytest.approx(wanted["probability"], abs=1e-6)


def test_only_the_tasks_that_are_checked_are_asked_for(browser: Browser, address: str) -> None:
    with visiting(browser, address, TOKEN) as visit:
        visit.page.wait_for_selector("#task-list input")
        visit.page.get_by_label("Mortality").uncheck()
        predict_by_keyboard(visit)
        assert set(visit.scores()) == set(TASKS) - {"mortality"}
        visit.page.get_by_role("button", name="Select none").click()
        visit.page.get_by_role("button", name="Predict").click()
        assert "check at least one" in visit.page.get_by_role("alert").inner_text()


def test_a_sample_takes_the_place_of_the_own_text_and_gives_it_back(browser: Browser, address: str) -> None:
    with visiting(browser, address, TOKEN) as visit:
        visit.page.wait_for_selector("#samples button")
        visit.page.fill("#note", NOTE)
        visit.page.get_by_role("button", name="Short nursing note").click()
        assert "invented patient" in visit.page.input_value("#note")
        assert "Synthetic" in visit.page.locator("#note-about").inner_text()
        visit.page.get_by_role("button", name="Bring my text back").click()
        assert visit.page.input_value("#note") == NOTE


def test_a_question_is_answered_by_base_and_stack_side_by_side(browser: Browser, address: str) -> None:
    with visiting(browser, address, TOKEN) as visit:
        visit.page.wait_for_selector("#questions")
        visit.tab_to("note")
        visit.page.keyboard.type(NOTE)
        visit.tab_to("question")
        visit.page.keyboard.type("Why did the patient come?")
        visit.page.keyboard.press("Enter")
        expect(visit.page.locator("#status")).to_contain_text("After, stack instruct")
        answers = [visit.page.locator(f"#{place}").inner_text() for place in ("before", "after")]
        for model, answer in zip(("instruct:base", "instruct"), answers, strict=True):
            messages = [{"role": "user", "content": "Why did the patient come?"}]
            whole = asked(address, "chat/completions", model=model, note=NOTE, temperature=0, messages=messages)
            assert whole["choices"][0]["message"]["content"].strip() == answer.strip()
        assert answers[0] != answers[1]
        assert "tokens read" in visit.page.locator("#after-about").inner_text()
        assert visit.complaints == []


def test_a_wrong_token_is_said_and_a_right_one_helps(browser: Browser, address: str) -> None:
    with visiting(browser, address, "not-the-token-of-this-test") as visit:
        page = visit.page
        page.wait_for_selector("#access")
        assert "did not accept the token" in page.get_by_role("alert").inner_text()
        assert page.evaluate("sessionStorage.length") == 0
        visit.tab_to("token")
        page.keyboard.type(TOKEN)
        page.keyboard.press("Enter")
        page.wait_for_selector("#task-list input")
        assert page.locator("#access").is_hidden()
        assert page.get_by_role("alert").count() == 0
        page.reload()  # the token lives as long as the tab
        page.wait_for_selector("#task-list input")
    with visiting(browser, address) as visit:
        visit.page.wait_for_selector("#access")
        assert "asks for its access token" in visit.page.get_by_role("alert").inner_text()


def answering(status: int, headers: dict[str, str] | None = None) -> Callable[[Route], None]:
    body = json.dumps({"error": {"type": "overloaded", "message": "Said by the server.", "param": None}})

    def answer(route: Route) -> None:
        route.fulfill(status=status, headers={"Content-Type": "application/json", **(headers or {})}, body=body)

    return answer


FAILURES = {413: "longer than this server takes", 422: "Said by the server.", 503: "shutting down", 504: "in time"}


def test_failures_are_sentences(browser: Browser, address: str) -> None:
    with visiting(browser, address, TOKEN) as visit:
        visit.page.wait_for_selector("#task-list input")
        visit.page.fill("#note", NOTE)
        alert = visit.page.get_by_role("alert")
        for status, words in FAILURES.items():
            visit.page.route("**/v1/predict", answering(status))
            visit.page.get_by_role("button", name="Predict").click()
            expect(alert).to_contain_text(words)
            expect(visit.page.locator("#predict")).to_be_enabled()
            alert.get_by_role("button", name="Close").click()
            expect(visit.page.locator("#problem")).to_be_hidden()
            visit.page.unroute("**/v1/predict")


def test_a_busy_server_is_waited_for_and_a_lost_one_is_named(browser: Browser, address: str) -> None:
    with visiting(browser, address, TOKEN) as visit:
        page = visit.page
        page.wait_for_selector("#task-list input")
        page.fill("#note", NOTE)
        page.route("**/v1/predict", answering(429, {"Retry-After": "1"}))
        page.get_by_role("button", name="Predict").click()
        page.wait_for_selector("#countdown")
        assert page.locator("#predict").is_disabled()
        assert "Try again in 1 second" in page.get_by_role("alert").text_content()
        expect(page.locator("#countdown")).to_contain_text("now")
        assert page.locator("#predict").is_enabled()
        page.unroute("**/v1/predict")
        page.route("**/v1/predict", lambda route: route.abort())
        page.get_by_role("button", name="Predict").click()
        expect(page.locator("#problem")).to_contain_text("cannot be reached")
        page.unroute("**/v1/predict")
        page.get_by_role("button", name="Predict").click()
        page.wait_for_selector(".scores")
        assert page.locator("#problem").is_hidden()


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1440, "light")])
def test_everybody_can_use_it(browser: Browser, address: str, width: int, scheme: Scheme, tmp_path: Path) -> None:
    with visiting(browser, address, TOKEN, width=width, scheme=scheme) as visit:
        page = visit.page
        predict_by_keyboard(visit)
        page.evaluate("document.querySelector('details').open = true")
        page.screenshot(path=tmp_path / f"{width}-{scheme}.png", full_page=True)
        assert page.evaluate(FINDINGS) == []
        assert page.evaluate(LOW_CONTRAST, 4.5) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        places = page.evaluate(FOCUSABLE)
        page.evaluate("document.querySelector('.skip').focus()")
        reached = []
        for _ in places:
            reached.append(page.evaluate("document.activeElement.dataset.place"))
            outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline != "none", f"no visible focus on {reached[-1]}"
            page.keyboard.press("Tab")
        assert reached == places
        assert "Research software" in page.get_by_role("note").inner_text()


def test_clearing_and_reloading_leave_nothing_of_a_note(browser: Browser, address: str) -> None:
    with visiting(browser, address, TOKEN) as visit:
        page = visit.page
        predict_by_keyboard(visit)
        page.reload()
        page.wait_for_selector("#task-list input")
        assert page.input_value("#note") == ""
        predict_by_keyboard(visit)
        page.get_by_role("button", name="Clear everything").click()
        assert page.input_value("#note") == ""
        assert visit.scores() == {}
        assert "zebra" not in page.content()


SHOW = """async ([answer, known]) => {
  const { showPredictions } = await import("/page/predictions.js");
  showPredictions(answer, new Map(known));
}"""


def test_tokens_and_long_lists_are_said_as_they_are(browser: Browser, address: str) -> None:
    classes = [
        {
            "name": f"c{place}",
            "probability": place / 10,
            "interval": None,
            "threshold": 0.75,
            "above_threshold": place > 7,
        }
        for place in range(10)
    ]
    codes = {"stack": "s", "kind": "multilabel", "calibrated": False, "calibration": "none", "classes": classes}
    model = {"base": "b", "fingerprint": "f"}

    def show(tokens: int, cut: int, limits: dict[str, int], omitted: int = 0) -> str:
        tasks = {name: codes | {"omitted": omitted} for name in limits}
        prediction = {"id": "0", "tokens": tokens, "cut_tokens": cut, "tasks": tasks}
        known = [[name, {"name": name, "max_tokens": limit}] for name, limit in limits.items()]
        page.evaluate(SHOW, [{"model": model, "predictions": [prediction]}, known])
        return page.locator("#tokens").inner_text()

    with visiting(browser, address, TOKEN) as visit:
        page = visit.page
        page.wait_for_selector("#task-list input")
        assert show(412, 0, {"a": 512, "b": 512}) == "Read: 412 of 512 tokens; 0 cut."
        assert "1,024 tokens in pieces of up to 512; 0 cut" in show(1024, 0, {"a": 512})
        assert "at most 412 tokens; at most 30 cut" in show(412, 30, {"a": 64, "b": 512})
        show(412, 0, {"a": 512}, omitted=36)
        rows = page.locator(".scores tr[data-class]:visible")
        assert rows.evaluate_all("rows => rows.map((row) => row.dataset.class)") == ["c9", "c8", "c7", "c6", "c5"]
        assert page.locator(".above:visible").all_inner_texts()[:2] == ["▲ 90.0%", "▲ 80.0%"]
        page.get_by_role("button", name="Show the 10 most probable").click()
        assert rows.count() == 10
        assert "36 less probable classes are not listed" in page.locator(".scores").inner_text()


def test_an_empty_note_and_an_empty_question_are_said(browser: Browser, address: str) -> None:
    with visiting(browser, address, TOKEN) as visit:
        visit.page.wait_for_selector("#task-list input")
        visit.page.get_by_role("button", name="Predict").click()
        assert "no note yet" in visit.page.get_by_role("alert").inner_text()
        assert visit.page.evaluate("document.activeElement.id") == "note"
        visit.page.fill("#note", NOTE)
        visit.page.get_by_role("button", name="Ask").click()
        assert "no question yet" in visit.page.get_by_role("alert").inner_text()
        assert visit.page.evaluate("document.activeElement.id") == "question"
