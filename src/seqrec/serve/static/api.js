// Calls to the API: the token, errors in one line, and requests that replace each other.

const KEY = "seqrec-token";

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

function stored() {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null; // storage is turned off
  }
}

let token = stored();
let asking = null;
let ask = async () => null;

/** Set what asks a person for the token: an async function of whether one was given before. */
export function onMissingToken(asks) {
  ask = asks;
}

async function newToken(used) {
  if (token !== used) return; // another request got one meanwhile
  asking ??= ask(used !== null).finally(() => (asking = null));
  token = await asking;
  try {
    sessionStorage.setItem(KEY, token);
  } catch {
    // It is kept until the page is closed.
  }
}

function address(path, query) {
  const given = Object.entries(query ?? {}).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return given.length ? `${path}?${new URLSearchParams(given)}` : path;
}

async function read(answer, signal) {
  try {
    return await answer.json();
  } catch {
    signal?.throwIfAborted(); // replaced by a newer request while its body came in
    throw new ApiError(answer.status, "the answer of the server is cut off; try again");
  }
}

/** The answer to a GET, or to a POST if there is a body. Throws ApiError with the server's line. */
export async function call(path, { query, body, signal } = {}) {
  for (;;) {
    const used = token;
    const headers = {};
    if (used) headers.Authorization = `Bearer ${used}`;
    if (body) headers["Content-Type"] = "application/json";
    let answer;
    try {
      answer = await fetch(address(path, query), {
        method: body ? "POST" : "GET", headers, signal, body: body ? JSON.stringify(body) : undefined,
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, "the server can't be reached; check that it runs, then try again");
    }
    if (answer.status === 401) {
      await newToken(used);
      signal?.throwIfAborted();
      continue;
    }
    if (answer.ok) return await read(answer, signal);
    const content = await answer.json().catch(() => ({}));
    throw new ApiError(answer.status, content.detail ?? `the server answered ${answer.status}`);
  }
}

/** A function that gives a new signal and aborts the former one, so that only the last request is shown. */
export function latest() {
  let controller = null;
  return () => {
    controller?.abort();
    controller = new AbortController();
    return controller.signal;
  };
}

const titles = new Map(); // by run and id

/** Remember titles that an answer brought. */
export function remember(run, items) {
  for (const item of items) titles.set(`${run}\n${item.id}`, item);
}

/** An item by its id: with its title, as far as the server knows it. */
export async function itemOf(run, id, signal) {
  const key = `${run}\n${id}`;
  if (!titles.has(key)) {
    const found = await call("/v1/items", { query: { q: id, k: 1, run }, signal });
    remember(run, found.items);
    if (!titles.has(key)) titles.set(key, { id, title: null, unknown: true });
  }
  return titles.get(key);
}
