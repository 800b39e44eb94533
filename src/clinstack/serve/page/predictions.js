/* The answer of POST /v1/predict as one table: a bar for each class, and beside it what the bar says as text. */

import { $, element, percent, words } from "./elements.js";

const TOP = 5;
/** Classes of a multilabel task that are shown at first. */

function track({ probability, interval, threshold }, calibrated) {
  const bar = element("span", { class: calibrated ? "track" : "track rough", "aria-hidden": "true" });
  const place = (name, share) => bar.style.setProperty(name, `${(100 * share).toFixed(3)}%`);
  if (probability) {
    place("--share", probability);
    bar.append(element("i"));
  }
  if (interval) {
    place("--low", interval[0]);
    place("--high", interval[1]);
    bar.append(element("u"));
  }
  if (typeof threshold === "number") {
    place("--threshold", threshold);
    bar.append(element("s"));
  }
  return bar;
}

function valueCell({ probability, interval, threshold, above_threshold: above }) {
  const value = element("data", { value: String(probability) }, percent(probability));
  const sign = above ? element("span", { "aria-hidden": "true" }, "▲ ") : null;
  const parts = [element("span", { class: above ? "above" : null }, sign, value)];
  if (interval) {
    const [low, high] = interval.map(percent);
    const spoken = element("span", { class: "hidden" }, `95% interval ${low} to ${high}`);
    const shown = element("span", { "aria-hidden": "true" }, `${low.replace("%", "")}–${high}`);
    parts.push(element("span", { class: "interval" }, spoken, shown));
  }
  if (typeof above === "boolean") {
    const mark = typeof threshold === "number" ? ` ${percent(threshold)}` : "";
    parts.push(element("span", { class: "hidden" }, `${above ? "at or above" : "below"} the threshold${mark}`));
  }
  return element("td", { class: "value" }, element("span", {}, ...parts));
}

function rowOf(scored, calibrated) {
  return element("tr", { "data-class": scored.name }, element("th", { scope: "row" }, scored.name),
    element("td", {}, track(scored, calibrated)), valueCell(scored));
}

/** The classes in the order in which they are shown, and how many of them at first. */
function shownClasses({ kind, classes }) {
  if (kind === "binary") return [classes.slice(1), 1];
  if (kind === "multiclass") return [classes, classes.length];
  return [[...classes].sort((a, b) => b.probability - a.probability), TOP];
}

function groupOf(name, scored, description) {
  const [classes, first] = shownClasses(scored);
  const state = scored.calibrated
    ? element("span", { class: "tag good" }, `calibrated: ${scored.calibration}`)
    : element("span", { class: "tag open" }, "not calibrated");
  const rows = classes.map((one) => rowOf(one, scored.calibrated));
  const hidden = rows.slice(first);
  const threshold = scored.kind === "binary" && classes[0].threshold;
  const about = [
    description,
    typeof threshold === "number" ? `Threshold ${percent(threshold)}.` : "",
    scored.calibrated ? "" : "Read the order, not the number.",
  ].filter(Boolean).join(" ");
  const heading = element("th", { scope: "rowgroup", colspan: "3" }, element("b", {}, words(name)), " ", state,
    element("br"), element("small", {}, about));
  const group = element("tbody", { "data-task": name }, element("tr", { class: "task" }, heading), ...rows);
  if (scored.omitted) {
    const text = `${scored.omitted} less probable classes are not listed.`;
    hidden.push(element("tr", {}, element("td", { colspan: "3", class: "soft" }, text)));
    group.append(hidden.at(-1));
  }
  if (hidden.length) {
    const button = element("button", { type: "button", class: "quiet", "aria-expanded": "false" });
    const show = (open) => {
      for (const row of hidden) row.hidden = !open;
      const all = !open && !scored.omitted;
      button.textContent = all ? `Show all ${classes.length} classes` : `Show the ${open ? first : classes.length} most probable`;
      button.setAttribute("aria-expanded", String(open));
    };
    button.addEventListener("click", () => show(button.getAttribute("aria-expanded") === "false"));
    show(false);
    group.append(element("tr", {}, element("td", { colspan: "3" }, button)));
  }
  return group;
}

function legendOf(tasks) {
  const all = Object.values(tasks);
  const item = (scored, calibrated, text) => element("li", {}, track(scored, calibrated), text);
  const has = (key) => all.some((task) => task.classes.some((one) => one[key] !== null && one[key] !== undefined));
  const list = element("ul", { class: "legend", "aria-hidden": "true" });
  if (all.some((task) => task.calibrated)) list.append(item({ probability: 0.6 }, true, "calibrated"));
  if (all.some((task) => !task.calibrated)) list.append(item({ probability: 0.6 }, false, "not calibrated"));
  if (has("interval")) list.append(item({ interval: [0.25, 0.75] }, true, "95% interval"));
  if (has("threshold")) list.append(item({ threshold: 0.5 }, true, "threshold"));
  if (all.some((task) => task.classes.some((one) => one.above_threshold)))
    list.append(element("li", {}, element("span", { class: "above" }, "▲"), "at or above the threshold"));
  return list;
}

/** "412 of 512 tokens; 0 cut". The API counts the most of any task, so that one limit is named only where all share it. */
function tokensOf({ tokens, cut_tokens: cut, tasks }, known) {
  const limits = [...new Set(Object.keys(tasks).map((name) => known.get(name)?.max_tokens ?? tokens))].sort((a, b) => a - b);
  const count = (number) => number.toLocaleString("en-US");
  let text = `${count(tokens)} of ${count(limits[0])} tokens; ${count(cut)} cut`;
  if (limits.length > 1) {
    const range = `between ${count(limits[0])} and ${count(limits.at(-1))}`;
    text = `at most ${count(tokens)} tokens; at most ${count(cut)} cut; these stacks take ${range} at a time`;
  } else if (tokens > limits[0]) text = `${count(tokens)} tokens in pieces of up to ${count(limits[0])}; ${count(cut)} cut`;
  return element("p", { class: "soft tokens", id: "tokens" }, "Read: ", cut ? element("strong", {}, text) : text,
    cut ? ". What was cut was not read by the model." : ".");
}

function fingerprintsOf(model, tasks) {
  const list = element("dl", { id: "fingerprints" });
  const add = (term, ...what) => list.append(element("dt", {}, term), element("dd", {}, ...what));
  add("Base", model.base, " ", element("code", {}, model.fingerprint));
  for (const [name, scored] of Object.entries(tasks)) add(words(name), element("code", {}, scored.stack));
  return element("details", {}, element("summary", {}, "Fingerprints of base and stacks"), list);
}

function headOf(withIntervals) {
  const column = (...children) => element("th", { scope: "col" }, ...children);
  const axis = ["0%", "50%", "100%"].map((at) => element("span", {}, at));
  const value = column(element("span", {}, element("span", {}, "Probability"), element("span", {}, withIntervals ? "95% interval" : "")));
  value.className = "value";
  return element("thead", {}, element("tr", {}, column("Class"),
    column(element("span", { class: "hidden" }, "Bar"), element("span", { class: "axis", "aria-hidden": "true" }, ...axis)),
    value));
}

/** Show the answer for one note; `known` holds what GET /v1/tasks says of each task, by name. */
export function showPredictions(answer, known) {
  const prediction = answer.predictions[0];
  const groups = Object.entries(prediction.tasks).map(([name, scored]) =>
    groupOf(name, scored, known.get(name)?.description ?? ""));
  const withIntervals = Object.values(prediction.tasks).some((task) => task.classes.some((one) => one.interval));
  const caption = element("caption", { class: "hidden" }, "Probability of each class of each task");
  $("predictions-empty").hidden = true;
  $("predictions-body").replaceChildren(
    tokensOf(prediction, known),
    element("table", { class: "scores" }, caption, headOf(withIntervals), ...groups),
    legendOf(prediction.tasks),
    fingerprintsOf(answer.model, prediction.tasks),
    element("p", { class: "soft remark" }, answer.disclaimer ?? ""),
  );
}

/** Show no predictions. */
export function clearPredictions() {
  $("predictions-body").replaceChildren();
  $("predictions-empty").hidden = false;
}
