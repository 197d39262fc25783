// What the page asks of the service. Every failure is an Error whose message can be shown.

/** What the service answers where a key is needed, or the one given is not good. */
export class KeyNeeded extends Error {}

/** Kept as long as the tab is open. */
export function useKey(key) {
  sessionStorage.setItem("key", key);
}

async function checked(response) {
  if (response.ok) return response;
  let message = `the service answers ${response.status}`;
  try {
    message = (await response.json()).error.message;
  } catch { /* no JSON: the status says what there is to say */ }
  throw response.status === 401 ? new KeyNeeded(message) : new Error(message);
}

async function ask(url, options = {}) {
  let response;
  const key = sessionStorage.getItem("key");
  if (key) options.headers = { ...options.headers, Authorization: `Bearer ${key}` };
  try {
    response = await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the service cannot be reached");
  }
  return checked(response);
}

export async function archives() {
  return (await (await ask("/v1/archives")).json()).archives;
}

export async function recordings(archive, contains, offset) {
  const query = new URLSearchParams({ archive, offset, limit: 50 });
  if (contains) query.set("contains", contains);
  return (await ask(`/v1/recordings?${query}`)).json();
}

export async function peaks(recording, start, end, points, signal) {
  const query = new URLSearchParams({ start, end, points });
  return (await (await ask(`/v1/recordings/${recording}/peaks?${query}`, { signal })).json()).peaks;
}

export async function clip(recording, start, end) {
  return (await ask(`/v1/recordings/${recording}/clip?${new URLSearchParams({ start, end })}`)).blob();
}

export async function search(form, marks) {
  const body = new FormData();
  for (const [name, value] of Object.entries(form)) body.append(name, value);
  if (marks) for (const kind of ["right", "wrong"]) body.append(kind, JSON.stringify(marks[kind]));
  return (await ask(marks ? "/v1/search/refine" : "/v1/search", { method: "POST", body })).json();
}

export async function exported(format, label, hits) {
  const response = await ask(`/v1/exports/${format}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ label, hits }),
  });
  const name = /filename="([^"]+)"/.exec(response.headers.get("Content-Disposition") ?? "")?.[1] ?? "hits";
  return { name, blob: await response.blob() };
}

// ---- archives and jobs

export async function deleteArchive(name) {
  await ask(`/v1/archives/${name.split("/").map(encodeURIComponent).join("/")}`, { method: "DELETE" });
}

export async function deleteRecording(recording) {
  await ask(`/v1/recordings/${recording}`, { method: "DELETE" });
}

export async function jobs(limit) {
  return (await (await ask(`/v1/jobs?limit=${limit}`)).json()).jobs;
}

export async function cancel(job) {
  await ask(`/v1/jobs/${job}/cancel`, { method: "POST" });
}

export async function indexFolder(archive, folder) {
  const body = JSON.stringify({ archive, folder });
  await ask("/v1/jobs", { method: "POST", headers: { "Content-Type": "application/json" }, body });
}

/** Send recordings; `progress` is told the share that has been sent, which fetch does not tell. */
export function upload(archive, files, replace, progress) {
  const body = new FormData();
  body.append("archive", archive);
  body.append("replace", String(replace));
  for (const file of files) body.append("file", file, file.name);
  const request = new XMLHttpRequest();
  request.open("POST", "/v1/recordings");
  const key = sessionStorage.getItem("key");
  if (key) request.setRequestHeader("Authorization", `Bearer ${key}`);
  request.upload.addEventListener("progress", (event) => progress(event.total ? event.loaded / event.total : 0));
  return new Promise((done, failed) => {
    request.addEventListener("load", () => done(checked(new Response(request.response || null, { status: request.status }))));
    request.addEventListener("error", () => failed(new Error("the service cannot be reached")));
    request.send(body);
  });
}

// ---- watches

export async function watch(form) {
  const body = new FormData();
  for (const [name, value] of Object.entries(form)) body.append(name, value);
  return (await ask("/v1/watches", { method: "POST", body })).json();
}

export async function watches() {
  return (await (await ask("/v1/watches")).json()).watches;
}

export async function watchHits(watch, limit) {
  return (await ask(`/v1/watches/${watch}/hits?limit=${limit}`)).json();
}

export async function deliveries(watch) {
  return (await (await ask(`/v1/watches/${watch}/deliveries?limit=1`)).json()).deliveries;
}

export async function deleteWatch(watch) {
  await ask(`/v1/watches/${watch}`, { method: "DELETE" });
}
