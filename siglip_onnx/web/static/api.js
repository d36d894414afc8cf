// The HTTP API as the page uses it.

import { byId } from "./dom.js";
import { known, t } from "./i18n.js";

const TRIES = 4;
let key = "";

/** A refusal of the server, said in the page's language where it has words for it. */
export class Refused extends Error {
  constructor(problem) {
    super(known(`error_${problem.code}`) ? t(`error_${problem.code}`) : problem.message);
    this.code = problem.code;
  }
}

async function call(path, options = {}, tries = TRIES) {
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    throw new Refused({ code: "unreachable" });
  }
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({ error: { code: "internal", message: response.statusText } }));
  if (response.status === 401 && tries > 1) {
    await askKey();
    return call(path, options, tries - 1);
  }
  if (response.status === 429 && tries > 1) {
    await new Promise((done) => setTimeout(done, 1000 * (error.retry_after_s ?? 1)));
    return call(path, options, tries - 1);
  }
  throw new Refused(error);
}

const post = (path, document) =>
  call(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(document) });

export const getModels = async () => (await call("v1/models")).json();

/** Let the server see a picture; it answers with the id under which it keeps the embedding. */
export async function see(blob) {
  const form = new FormData();
  form.append("pictures", blob);
  form.append("vectors", "false");
  return (await call("v1/embed/images", { method: "POST", body: form })).json();
}

export const fetchPicture = async (url) => (await post("v1/fetch", { url })).blob();

/** Ask about pictures that were seen; one that is not kept any more is sent again. */
export async function classify(pictures, texts, template) {
  const ask = async () =>
    (await post("v1/classify", { pictures: pictures.map(({ id }) => ({ id })), texts, template })).json();
  try {
    return await ask();
  } catch (error) {
    if (error.code !== "unknown_picture") throw error;
    for (const picture of pictures) picture.id = (await see(picture.blob)).pictures[0].id;
    return ask();
  }
}

function askKey() {
  const dialog = byId("key-dialog");
  dialog.showModal();
  return new Promise((done) => {
    dialog.onclose = () => {
      key = byId("key").value;
      done();
    };
  });
}
