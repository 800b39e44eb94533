/* A question about the note, answered twice side by side: by the untouched base and by the stack. */

import { events, request } from "./api.js";
import { $, say } from "./elements.js";

let running = null;

async function stream(model, note, question, place, signal) {
  const answer = $(place);
  const about = $(`${place}-about`);
  answer.textContent = "";
  about.textContent = "";
  answer.classList.add("writing");
  answer.setAttribute("aria-busy", "true");
  const started = performance.now();
  let reason = null;
  let usage = null;
  try {
    const body = {
      model,
      note,
      messages: [{ role: "user", content: question }],
      temperature: 0,
      stream: true,
      stream_options: { include_usage: true },
    };
    for await (const event of events(await request("v1/chat/completions", body, signal))) {
      const choice = event.choices?.[0];
      if (choice?.delta?.content) answer.append(choice.delta.content);
      reason = choice?.finish_reason ?? reason;
      usage = event.usage ?? usage;
    }
    const seconds = ((performance.now() - started) / 1000).toFixed(1);
    const cut = usage?.note_tokens_cut ? `, ${usage.note_tokens_cut} of the note cut` : "";
    const count = usage ? `${usage.prompt_tokens} tokens read${cut}, ${usage.completion_tokens} written` : "";
    about.textContent = [count, `${seconds}\u00a0s`, reason === "length" ? "broken off at the limit" : ""].filter(Boolean).join("; ");
    if (!answer.textContent) about.textContent += "; the answer is empty";
  } finally {
    answer.classList.remove("writing");
    answer.removeAttribute("aria-busy");
  }
}

/** Ask both; the first failure stops the other and is thrown. */
export async function askBoth(stack, note, question) {
  running?.abort();
  const control = new AbortController();
  running = control;
  $("after-name").textContent = stack;
  $("pair").hidden = false;
  $("stop").hidden = false;
  say("Both are writing their answers.");
  try {
    await Promise.all([
      stream(`${stack}:base`, note, question, "before", control.signal),
      stream(stack, note, question, "after", control.signal),
    ]);
    say(`Before, untouched base: ${$("before").textContent} After, stack ${stack}: ${$("after").textContent}`);
  } catch (error) {
    control.abort();
    if (error.name !== "AbortError") throw error;
    say("Stopped.");
  } finally {
    if (running === control) {
      running = null;
      $("stop").hidden = true;
    }
  }
}

/** Stop both answers; what is written so far stays. */
export function stopAnswers() {
  running?.abort();
}

/** Show no answers. */
export function clearAnswers() {
  stopAnswers();
  $("pair").hidden = true;
  for (const place of ["before", "after", "before-about", "after-about"]) $(place).textContent = "";
}
