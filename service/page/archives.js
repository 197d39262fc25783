// Archives and jobs: recordings are added and deleted, and it is shown how far that is.

import * as api from "./api.js";
import { droppable, loadArchives } from "./search.js";
import { at, clock, copied, sure, tell, trying } from "./shared.js";

const POLL_MS = 1_000;
const JOBS = 20;
const WHAT = { index_upload: "Upload", index_folder: "Folder", refit: "New codebook" };

let polling = 0;
let open = new Set(); // ids of jobs that were not over when last looked at

/** Fetch all that the view shows. */
export async function show() {
  const archives = await api.archives();
  at("archive-list").replaceChildren(...archives.map(row));
  at("archive-names").replaceChildren(...archives.map(({ name }) => new Option(name, name)));
  at("no-archives").hidden = archives.length > 0;
  await showJobs();
}

function row(archive) {
  const [out, find] = copied("archive-row");
  find("name").textContent = archive.name;
  find("facts").textContent =
    `${archive.recordings} recordings, ${archive.hours.toFixed(2)} h, ${(archive.bytes / 1e6).toFixed(1)} MB`;
  find("list").setAttribute("aria-label", `Recordings of ${archive.name}`);
  find("list").addEventListener("click", trying(async () => {
    const list = find("recordings");
    list.hidden = !list.hidden;
    find("list").setAttribute("aria-expanded", String(!list.hidden));
    if (!list.hidden) await showRecordings(archive.name, list, 0);
  }));
  find("delete").setAttribute("aria-label", `Delete ${archive.name}`);
  find("delete").addEventListener("click", trying(async () => {
    if (!await sure(`Delete the archive “${archive.name}” with all that was made of its recordings?`, "Delete")) return;
    await api.deleteArchive(archive.name);
    await Promise.all([show(), loadArchives()]);
    tell(`Deleted ${archive.name}.`);
  }));
  return out;
}

async function showRecordings(archive, list, offset) {
  const page = await api.recordings(archive, "", offset);
  const items = page.recordings.map((recording) => recordingRow(recording));
  if (page.next_offset !== null) {
    const more = Object.assign(document.createElement("button"), { type: "button", textContent: "More" });
    more.addEventListener("click", trying(async () => {
      more.parentElement.remove();
      await showRecordings(archive, list, page.next_offset);
    }));
    const last = document.createElement("li");
    last.append(more);
    items.push(last);
  }
  if (offset) list.append(...items);
  else list.replaceChildren(...items);
}

function recordingRow(recording) {
  const [out, find] = copied("recording-row");
  find("name").textContent = recording.name;
  const own = recording.external_id === null ? "" : `, ${recording.external_id}`;
  find("facts").textContent = `${clock(recording.duration)}${own}`;
  const said = Object.keys(recording.metadata).length ? JSON.stringify(recording.metadata) : "";
  find("metadata").textContent = said;
  find("delete").setAttribute("aria-label", `Delete ${recording.name}`);
  find("delete").addEventListener("click", trying(async () => {
    if (!await sure(`Delete the recording “${recording.name}” from the archive?`, "Delete")) return;
    await api.deleteRecording(recording.id);
    out.remove();
    await loadArchives();
    tell(`Deleted ${recording.name}.`);
  }));
  return out;
}

// ---- jobs

async function showJobs() {
  const jobs = await api.jobs(JOBS);
  at("jobs").replaceChildren(...jobs.map(jobRow));
  at("no-jobs").hidden = jobs.length > 0;
  const now = new Set(jobs.filter((job) => job.finished_at === null).map(({ id }) => id));
  const over = [...open].some((id) => !now.has(id));
  open = now;
  if (over) await Promise.all([show(), loadArchives()]);
  clearTimeout(polling);
  if (now.size && !at("view-archives").hidden) polling = setTimeout(trying(showJobs), POLL_MS);
}

function jobRow(job) {
  const [out, find] = copied("job");
  find("what").textContent = `${WHAT[job.kind]} into ${job.archive}`;
  find("state").textContent = job.cancel_wanted && job.state === "running" ? "is being given up" : job.state;
  find("state").dataset.state = job.state;
  const bar = find("bar"), { progress, report } = job;
  bar.setAttribute("aria-label", `Progress of job ${job.id}`);
  bar.hidden = job.state !== "running";
  if (progress?.total_s) bar.value = Math.min(1, progress.done_s / progress.total_s);
  find("told").textContent = described(job, progress, report);
  const failed = report?.failed ?? [];
  find("failed").hidden = failed.length === 0;
  find("failed-count").textContent = `${failed.length} failed`;
  find("failed-files").replaceChildren(...failed.map(({ name, message }) =>
    Object.assign(document.createElement("li"), { textContent: `${name}: ${message}` })));
  find("cancel").hidden = job.finished_at !== null || job.cancel_wanted;
  find("cancel").setAttribute("aria-label", `Cancel job ${job.id}, ${WHAT[job.kind]} into ${job.archive}`);
  find("cancel").addEventListener("click", trying(async () => {
    await api.cancel(job.id);
    await showJobs();
  }));
  return out;
}

function described(job, progress, report) {
  if (job.error) return job.error.message;
  if (report) return `${report.indexed} indexed, ${report.unchanged} unchanged, ${(report.audio_s / 3600).toFixed(2)} h`;
  if (job.state !== "running" || !progress) return "";
  const speed = progress.wall_s > 0 && progress.done_s > 0 ? `, ${Math.round(progress.done_s / progress.wall_s)}× real time` : "";
  return progress.total_s
    ? `${progress.stage}, ${(progress.done_s / 3600).toFixed(2)} of ${(progress.total_s / 3600).toFixed(2)} h${speed}`
    : progress.stage;
}

// ---- adding

async function send(files) {
  const archive = at("to").value.trim();
  if (!archive) throw new Error("name the archive that the recordings are for");
  const bar = at("sending");
  bar.hidden = false;
  bar.value = 0;
  tell(`Sending ${files.length} ${files.length === 1 ? "file" : "files"} …`);
  try {
    await api.upload(archive, files, at("replace").checked, (share) => { bar.value = share; });
  } finally {
    bar.hidden = true;
  }
  tell("Sent; they are indexed now.");
  await show();
}

at("add-files").addEventListener("change", trying(async () => {
  const files = [...at("add-files").files];
  at("add-files").value = "";
  if (files.length) await send(files);
}));
droppable(at("add-drop"), send);
at("folder-form").addEventListener("submit", trying(async (event) => {
  event.preventDefault();
  const archive = at("to").value.trim();
  if (!archive) throw new Error("name the archive that the folder is for");
  await api.indexFolder(archive, at("folder").value);
  await show();
}));
