/* The HTTP API of this server: the token, requests, and errors as sentences for people. */

const KEY = "clinstack-token";

/** Take the token out of the address bar (#token=…) or of this tab's memory; it is never part of a request's URL. */
export function tokenOfTab() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    history.replaceState(null, "", location.pathname + location.search);
    keepToken(given);
  }
  return sessionStorage.getItem(KEY) ?? "";
}

/** Keep the token for as long as this tab lives; an empty one forgets it. */
export function keepToken(token) {
  if (token) sessionStorage.setItem(KEY, token);
  else sessionStorage.removeItem(KEY);
}

/** A failure with what a person is to read; `wait` in seconds where the server said when to come back. */
export class Problem extends Error {
  constructor(message, { status = 0, wait = null } = {}) {
    super(message);
    this.status = status;
    this.wait = wait;
  }
}

const SENTENCES = {
  401: "The server did not accept the token. Enter the one that it printed when it was first started.",
  413: "The note is longer than this server takes. Shorten it.",
  429: "The server has as much to do as it takes, or this client asked too often.",
  503: "The server is shutting down or not ready yet. Try again in a moment.",
  504: "The server did not finish in time. Try again, with fewer tasks or a shorter note.",
};

async function problemOf(response) {
  let said = "";
  try {
    said = (await response.json()).error?.message ?? "";
  } catch {
    said = ""; // a proxy's error page is no JSON; the status says enough
  }
  const seconds = Number.parseFloat(response.headers.get("Retry-After") ?? "");
  const own = SENTENCES[response.status] ?? (said ? "" : `The server answered with status ${response.status}.`);
  const message = response.status === 401 ? own : [own, said].filter(Boolean).join(" ");
  return new Problem(message, { status: response.status, wait: Number.isFinite(seconds) ? Math.ceil(seconds) : null });
}

/** Send a request; a body makes it a POST. Returns the response when its status is 2xx, and throws a Problem otherwise. */
export async function request(path, body = null, signal = undefined) {
  const token = sessionStorage.getItem(KEY);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  if (body !== null) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: body === null ? "GET" : "POST",
      headers,
      body: body === null ? undefined : JSON.stringify(body),
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server cannot be reached. Is it still running?");
  }
  if (response.status === 401 && !token) {
    throw new Problem("This server asks for its access token.", { status: 401 });
  }
  if (!response.ok) throw await problemOf(response);
  return response;
}

/** Yield the objects of a stream of server-sent events until `[DONE]`. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Problem(event.error.message ?? "The server broke off its answer.");
      yield event;
    }
  }
}
