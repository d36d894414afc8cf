// Client of the HTTP API.

import { byId } from "./dom.js";
import { hasText, t } from "./i18n.js";
import { limitValues } from "./store.js";

const MAX_ATTEMPTS = 4;
let key = "";

/** An error of the server, in the page's language if it has a text for its code. */
export class ApiError extends Error {
  constructor(problem) {
    const values = { ...limitValues(), status: problem.status };
    super(hasText(`error_${problem.code}`) ? t(`error_${problem.code}`, values) : (problem.message ?? problem.code));
    this.code = problem.code;
  }
}

async function call(path, options = {}, attempts = MAX_ATTEMPTS) {
  const used = key;
  const headers = { ...options.headers, ...(used ? { Authorization: `Bearer ${used}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ApiError({ code: "unreachable" });
  }
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({ error: proxyProblem(response) }));
  if (response.status === 401 && attempts > 1) {
    if (used === key) await promptForKey(); // otherwise another request has asked meanwhile
    return call(path, options, attempts - 1);
  }
  if (response.status === 429 && attempts > 1) {
    await new Promise((done) => setTimeout(done, 1000 * (error.retry_after_s ?? 1)));
    return call(path, options, attempts - 1);
  }
  throw new ApiError(error);
}

/** Return the problem of an answer that is not from this server but from a proxy before it. */
function proxyProblem({ status, statusText }) {
  const code = status === 413 ? "proxy_too_large" : status >= 502 && status <= 504 ? "unreachable" : "proxy";
  return { code, status, message: `${status} ${statusText}` };
}

/** Get a file of the page. */
export const getFile = (path) => call(path);

const post = (path, document) =>
  call(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(document) });

export const getModels = async () => (await call("v1/models")).json();

/** Embed an image on the server, which returns the id under which the embedding is cached. */
export async function embedImage(blob) {
  const form = new FormData();
  form.append("images", blob);
  form.append("vectors", "false");
  form.append("strict", "true");
  return (await call("v1/embed/images", { method: "POST", body: form })).json();
}

export const fetchImage = async (url) => (await post("v1/fetch", { url })).blob();

/** Classify images by their ids, by labels if there are no texts; images no longer in the server's cache are sent again. */
export async function classify(images, texts, template) {
  const about = { strict: true, ...(texts ? { texts, template } : {}) };
  const send = async () => (await post("v1/classify", { images: images.map(({ id }) => ({ id })), ...about })).json();
  try {
    return await send();
  } catch (error) {
    if (error.code !== "unknown_image") throw error;
    for (const image of images) image.id = (await embedImage(image.blob)).images[0].id;
    return send();
  }
}

/** Return a model's explanation of one text; onProgress gets the runs done and their total, and the signal stops them. */
export async function explain(image, text, template, model, { signal, onProgress }) {
  const form = new FormData();
  form.append("images", image.blob);
  form.append("texts", text);
  if (template) form.append("template", template);
  form.append("models", model);
  const response = await call("v1/explain", { method: "POST", headers: { Accept: "application/x-ndjson" }, body: form, signal });
  for await (const { done, total, result, error } of linesOf(response, signal)) {
    if (error) throw new ApiError(error);
    if (result) return result.models[0];
    onProgress(done, total);
  }
  throw new ApiError({ code: "unreachable" });
}

/** Yield the documents of a reply that has one per line. */
async function* linesOf(response, signal) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      if (signal.aborted) throw error;
      throw new ApiError({ code: "unreachable" });
    });
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    yield* lines.map((line) => JSON.parse(line));
  }
}

let answer = null; // to the dialog that is open, for all requests that wait for it

function promptForKey() {
  const dialog = byId("key-dialog");
  answer ??= new Promise((done) => {
    dialog.showModal();
    dialog.onclose = () => {
      key = byId("key").value;
      answer = null;
      done();
    };
  });
  return answer;
}
