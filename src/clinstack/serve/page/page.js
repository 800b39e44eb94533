/* What the page does: connects, offers samples and tasks, predicts, asks, and says what went wrong. */

import { askBoth, clearAnswers, stopAnswers } from "./answers.js";
import { keepToken, Problem, request, tokenOfTab } from "./api.js";
import { $, element, say, words } from "./elements.js";
import { clearPredictions, showPredictions } from "./predictions.js";

const known = new Map();
/** What GET /v1/tasks says of each stack, by name. */
let samples = [];
let own = "";
/** The person's own text, kept while a sample stands in its place; in memory only. */
let predicted = null;
/** The text that the predictions on the page are for. */
let answered = null;
/** The text that the answers on the page are about. */
let predicting = null;
let countdown = null;

const plural = (count, one) => `${count.toLocaleString("en-US")} ${one}${count === 1 ? "" : "s"}`;

/* Problems ---------------------------------------------------------------- */

function clearProblem() {
  clearInterval(countdown);
  $("problem").hidden = true;
  $("problem").replaceChildren();
  for (const id of ["predict", "ask"]) $(id).disabled = false;
}

/** Show what went wrong; `again`, where given, is offered as a button. */
function showProblem(error, again = null) {
  if (error.name === "AbortError") return;
  if (!(error instanceof Problem)) throw error;
  clearProblem();
  const lines = [element("p", {}, error.message)];
  if (error.wait !== null) {
    // Counted beside the sentence, where a screen reader does not read out every second.
    let left = error.wait;
    const line = element("p", { "aria-hidden": "true", id: "countdown" });
    const tick = () => {
      line.textContent = left > 0 ? `Try again in ${left} s.` : "You can try again now.";
      for (const id of ["predict", "ask"]) $(id).disabled = left > 0;
      if (left <= 0) clearInterval(countdown);
      left -= 1;
    };
    countdown = setInterval(tick, 1000);
    tick();
    lines.push(element("p", { class: "hidden" }, `Try again in ${plural(error.wait, "second")}.`), line);
  }
  const button = (text, act) => {
    const made = element("button", { type: "button", class: "quiet" }, text);
    made.addEventListener("click", act);
    return made;
  };
  const buttons = [again ? button("Try again", again) : null, button("Close", clearProblem)];
  $("problem").replaceChildren(...lines, element("p", { class: "line" }, ...buttons));
  $("problem").hidden = false;
  if (error.status === 401) {
    keepToken("");
    $("access").hidden = false;
    $("server").textContent = "Not connected";
    $("token").focus();
  }
}

/* The note ---------------------------------------------------------------- */

function noteChanged() {
  const text = $("note").value;
  const sample = samples.find((one) => one.text === text);
  $("note-length").textContent = plural(text.length, "character");
  $("note-kind").replaceChildren(...(sample ? [element("strong", {}, "Synthetic: an invented patient.")] : []));
  for (const button of $("samples").children) button.setAttribute("aria-pressed", String(button.textContent === sample?.name));
  $("restore").hidden = !own || text === own;
  $("stale").hidden = predicted === null || predicted === text;
  $("pair-stale").hidden = answered === null || answered === text;
  const questions = sample?.questions ?? [];
  $("suggestions").hidden = questions.length === 0;
  $("suggestions").replaceChildren(element("span", { class: "soft" }, "Try:"), ...questions.map((text) => {
    const button = element("button", { type: "button" }, text);
    button.addEventListener("click", () => {
      $("question").value = text;
      $("question").focus();
    });
    return button;
  }));
}

function setNote(text) {
  const before = $("note").value;
  if (before.trim() && !samples.some((one) => one.text === before)) own = before;
  $("note").value = text;
  noteChanged();
}

async function offerSamples() {
  samples = (await (await request("page/samples.json")).json()).samples;
  $("samples").replaceChildren(...samples.map((sample) => {
    const button = element("button", { type: "button", "aria-pressed": "false" }, sample.name);
    button.addEventListener("click", () => setNote(sample.text));
    return button;
  }));
  noteChanged();
}

/** The note, or null where there is none yet, which is said. */
function noteOrComplaint() {
  const text = $("note").value;
  if (text.trim()) return text;
  showProblem(new Problem("There is no note yet: paste one, or choose a sample."));
  $("note").focus();
  return null;
}

/* Tasks ------------------------------------------------------------------- */

function offerTasks(answer) {
  const chosen = new Set([...document.querySelectorAll("#task-list input")].filter((box) => !box.checked).map((box) => box.value));
  known.clear();
  for (const task of answer.tasks) known.set(task.name, task);
  const classifiers = answer.tasks.filter((task) => task.type === "classifier");
  const instructions = answer.tasks.filter((task) => task.type === "instructions");
  $("task-list").replaceChildren(...classifiers.map((task) => {
    const box = element("input", { type: "checkbox", value: task.name });
    box.checked = !chosen.has(task.name);
    const kind = task.kind === "binary" ? "binary" : `${task.kind}, ${task.classes.length} classes`;
    const about = `${kind}, ${task.calibrated ? "calibrated" : "not calibrated"}`;
    return element("label", {}, box, element("span", {}, words(task.name), element("small", {}, about)));
  }));
  for (const id of ["tasks", "actions", "predictions"]) $(id).hidden = classifiers.length === 0;
  $("stack").replaceChildren(...instructions.map((task) => element("option", { value: task.name }, task.name)));
  $("stack-choice").hidden = instructions.length < 2;
  $("questions").hidden = instructions.length === 0;
  $("workplace").classList.toggle("only-questions", classifiers.length === 0);
  $("toy").hidden = !answer.tasks.some((task) => task.synthetic);
  const base = answer.model.base.startsWith("/") ? answer.model.base.split("/").at(-1) : answer.model.base;
  const counts = [`base ${base}`, classifiers.length && plural(classifiers.length, "task"), instructions.length && plural(instructions.length, "instruction stack")];
  return counts.filter(Boolean).join(", ");
}

async function connect() {
  clearProblem();
  try {
    const counts = offerTasks(await (await request("v1/tasks")).json());
    $("access").hidden = true;
    $("workplace").hidden = false;
    $("server").textContent = `Connected: ${counts}`;
    return true;
  } catch (error) {
    showProblem(error, error.status === 401 ? null : connect);
    return false;
  }
}

/* Predicting and asking --------------------------------------------------- */

async function predict() {
  if ($("predict").disabled || $("actions").hidden) return;
  clearProblem();
  const note = noteOrComplaint();
  if (note === null) return;
  const tasks = [...document.querySelectorAll("#task-list input:checked")].map((box) => box.value);
  if (tasks.length === 0) {
    showProblem(new Problem("No task is chosen: check at least one."));
    document.querySelector("#task-list input").focus();
    return;
  }
  predicting?.abort();
  const control = new AbortController();
  predicting = control;
  $("predictions").setAttribute("aria-busy", "true");
  $("predict").textContent = "Predicting …";
  say("Predicting.");
  try {
    const answer = await (await request("v1/predict", { note, tasks }, control.signal)).json();
    showPredictions(answer, known);
    predicted = note;
    noteChanged();
    say(`Predictions for ${plural(tasks.length, "task")} are ready.`);
    const box = $("predictions").getBoundingClientRect();
    if (box.top > innerHeight - 120) $("predictions-heading").focus();
  } catch (error) {
    showProblem(error);
  } finally {
    if (predicting === control) {
      $("predictions").removeAttribute("aria-busy");
      $("predict").textContent = "Predict";
    }
  }
}

async function ask() {
  if ($("ask").disabled) return;
  clearProblem();
  const note = noteOrComplaint();
  if (note === null) return;
  const question = $("question").value.trim();
  if (!question) {
    showProblem(new Problem("There is no question yet."));
    $("question").focus();
    return;
  }
  answered = note;
  noteChanged();
  try {
    await askBoth($("stack").value, note, question);
  } catch (error) {
    showProblem(error);
  }
}

/* Wiring ------------------------------------------------------------------ */

function on(id, event, act) {
  $(id).addEventListener(event, (happened) => {
    if (event === "submit") happened.preventDefault();
    act(happened);
  });
}

on("note-form", "submit", predict);
on("question-form", "submit", ask);
on("note", "input", noteChanged);
on("restore", "click", () => setNote(own));
on("stop", "click", stopAnswers);
on("clear", "click", () => {
  predicting?.abort();
  clearPredictions();
  clearAnswers();
  clearProblem();
  own = "";
  predicted = answered = null;
  $("note").value = $("question").value = "";
  noteChanged();
  say("Note, predictions and answers are cleared.");
  $("note").focus();
});
on("all-tasks", "click", () => document.querySelectorAll("#task-list input").forEach((box) => (box.checked = true)));
on("no-tasks", "click", () => document.querySelectorAll("#task-list input").forEach((box) => (box.checked = false)));
on("access-form", "submit", async () => {
  keepToken($("token").value.trim());
  $("token").value = "";
  if (await connect()) $("note").focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  if ($("workplace").hidden) return;
  if ($("questions").contains(document.activeElement) || $("actions").hidden) ask();
  else predict();
});

addEventListener("hashchange", () => {
  // A link with a token, opened in this tab.
  if (tokenOfTab()) connect();
});

tokenOfTab();
offerSamples().catch(showProblem);
connect();
