/** One job, whatever its state: waiting, in the making, a scene, or a sentence on why there is none. */

import { type JobDocument, Problem } from "../api";
import { announce, h, icon } from "./dom";
import { about, type Example } from "./gallery";
import type { Access } from "./key";
import { Estimate, ProgressCard } from "./progress";
import type { Recent } from "./recent";
import { address, share } from "./share";
import { tiny } from "./thumbnail";
import { count, duration, elapsed, lately, roughly, stage } from "./words";

/** What there is beside the job. */
export interface Around {
  readonly access: Access;
  readonly recent: Recent;
  /** Where the service is. */
  readonly base: string;
  readonly place: HTMLElement;
  /** The photos of the job, where it was made from those that are still in the tray. */
  pictures(id: string): readonly (Blob | null)[] | null;
  /** Back to the tray, as it is. */
  back(): void;
  /** To an empty tray. */
  anew(): void;
  /** Send what is in the tray again. */
  again(): void;
}

/** Show the job until it has ended or the signal comes. Whatever goes wrong is shown. */
export async function showJob(id: string, around: Around, signal: AbortSignal): Promise<void> {
  const { access, place, recent } = around;
  let stop: () => void = () => undefined;
  try {
    place.replaceChildren(opening());
    const ended = await access.call(async (service) => {
      const card = new ProgressCard(around.pictures(id) ?? [], () => void cancel(id, around));
      const estimate = new Estimate();
      let job: JobDocument | undefined;
      const draw = () => job && card.show(state(job, estimate));
      const clock = setInterval(draw, 1000);
      stop = () => clearInterval(clock);
      signal.addEventListener("abort", stop);
      for await (job of service.watch(id, signal)) {
        if (recent.has(id)) recent.keep(job);
        if (job.status !== "queued" && job.status !== "running") break;
        draw();
        if (!card.element.isConnected) {
          place.replaceChildren(card.element);
          card.focus();
        }
      }
      stop();
      return job;
    });
    if (ended?.status === "succeeded") await showScene(ended, around, signal);
    else if (ended?.status === "failed") failure(ended, around);
    else if (ended) canceled(around);
  } catch (error) {
    stop();
    if (signal.aborted) return;
    if (!(error instanceof Problem)) throw error;
    if (error.status === 404) recent.gone(id);
    trouble(error, id, around);
  }
}

/** Show an example's scene. */
export async function showExample(example: Example, source: string, around: Around): Promise<void> {
  const anew = h("button", { type: "button", class: "primary", onclick: around.anew }, icon("add"), "New scene");
  await scene(around.place, example.title, about(example), [], [anew], source);
}

async function showScene(job: JobDocument, around: Around, signal: AbortSignal): Promise<void> {
  const { access, base, recent } = around;
  const source = await address(access, base, job.id);
  signal.throwIfAborted();
  const status = h("p", { class: "fault", role: "alert" });
  const attempt = (what: Promise<unknown>) =>
    void what.catch((error: unknown) => {
      if (!(error instanceof Problem)) throw error;
      status.textContent = `${error.message} ${error.suggestion}`;
    });
  const remove = async () => {
    if (await recent.delete(job.id)) around.anew();
  };
  const actions = [
    button("share", "Share", () => attempt(share(access, base, job.id))),
    button("trash", "Delete", () => attempt(remove())),
    h("button", { type: "button", class: "primary", onclick: around.anew }, icon("add"), "New scene"),
  ];
  const took = job.started_at && job.finished_at ? Date.parse(job.finished_at) - Date.parse(job.started_at) : 0;
  const kept = job.expires_at ? ` Kept until ${lately(job.expires_at)}.` : "";
  const facts = `${lately(job.created_at)}, made in ${duration(took / 1000)} by ${job.model}.${kept}`;
  const doubt = "The whole scene is doubtful. Photos with more overlap, each taken a step further, help most.";
  const notes = [...(job.low_confidence ? [doubt] : []), ...job.warnings];
  const title = `Scene of ${count(job.views.length, "photo")}`;
  await scene(around.place, title, facts, notes, actions, source, status);
  if (!recent.pictured(job.id)) await depict(job, source, recent);
}

async function scene(
  place: HTMLElement,
  title: string,
  facts: string,
  notes: readonly string[],
  actions: readonly HTMLElement[],
  source: string,
  ...more: readonly HTMLElement[]
): Promise<void> {
  // The viewer is large, and wanted only here.
  const loaded = import("../element");
  const heading = h("h1", { tabindex: -1 }, title);
  const viewer = document.createElement("scenelift-viewer");
  viewer.setAttribute("src", source);
  const list = notes.map((note) => h("li", {}, icon("warning"), h("span", {}, note)));
  place.replaceChildren(
    h(
      "section",
      { class: "scene" },
      h(
        "div",
        { class: "title" },
        h("div", {}, heading, h("p", { class: "quiet" }, facts)),
        h("div", { class: "actions" }, ...actions),
      ),
      ...more,
      ...(list.length ? [h("ul", { class: "notes", "aria-label": "Notes on this scene" }, ...list)] : []),
      viewer,
    ),
  );
  document.title = `${title} - Scenelift`;
  heading.focus();
  announce(["The scene is ready.", ...notes].join(" "));
  await loaded;
}

/** A picture for the list of recent scenes, where no photo of it is at hand. */
async function depict(job: JobDocument, source: string, recent: Recent): Promise<void> {
  const file = job.files.find((one) => one.name === "preview.webp");
  if (!file || !recent.has(job.id)) return;
  const url = new URL(file.url, source);
  url.search = new URL(source).search;
  const response = await fetch(url).catch(() => null);
  if (response?.ok) recent.keep(job, await tiny(await response.blob()));
}

function state(job: JobDocument, estimate: Estimate): Parameters<ProgressCard["show"]>[0] {
  if (job.status === "queued") {
    const ahead = job.queue_position ?? 0;
    const turn = ahead ? `${count(ahead, "scene is", "scenes are")} ahead of yours` : "Yours is next";
    return { title: "Waiting for its turn", share: null, stage: turn };
  }
  const left = estimate.left(job.progress);
  const since = job.started_at ? Math.max(0, Date.now() - Date.parse(job.started_at)) / 1000 : 0;
  const times = [elapsed(since), left === undefined ? "" : roughly(left)].filter(Boolean);
  return { title: "Making the scene", share: job.progress, stage: stage(job.stage), time: times.join(", ") };
}

async function cancel(id: string, around: Around): Promise<void> {
  try {
    const job = await around.access.call((service) => service.cancel(id));
    // It was done before the service heard of it, and is shown.
    if (job.status === "succeeded" || job.status === "failed") return;
    around.recent.forget(id);
    around.back();
    announce("Cancelled.");
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    trouble(error, id, around);
  }
}

/** Most jobs that are opened are done: what is to come has its place already. */
function opening(): HTMLElement {
  const words = h("div", {}, h("h1", { tabindex: -1 }, "Opening the scene"), h("p", { class: "quiet" }, "\u00a0"));
  return h("section", { class: "scene" }, h("div", { class: "title" }, words), h("div", { class: "space" }));
}

function failure(job: JobDocument, around: Around): void {
  const photos = around.pictures(job.id) !== null;
  const actions = photos
    ? [
        h("button", { type: "button", class: "plain", onclick: around.again }, "Try again"),
        h("button", { type: "button", class: "primary", onclick: around.back }, "Change the photos"),
      ]
    : [h("button", { type: "button", class: "primary", onclick: around.anew }, "New scene")];
  said("This did not become a scene", job.error?.detail ?? "", job.error?.suggestion ?? "", actions, around);
}

function canceled(around: Around): void {
  const actions = [h("button", { type: "button", class: "primary", onclick: around.anew }, "New scene")];
  said("Cancelled", "This scene was cancelled before it was done.", "", actions, around);
}

function trouble(problem: Problem, id: string, around: Around): void {
  const retry = () => location.assign(`?job=${id}`);
  const again = h("button", { type: "button", class: "plain", onclick: retry }, "Try again");
  const anew = h("button", { type: "button", class: "primary", onclick: around.anew }, "New scene");
  if (problem.status === 404) {
    said("This scene is not here any more", problem.message, problem.suggestion, [anew], around);
  } else if (problem.status === 401) {
    said("This scene needs a key", "It opens with the API key that made it, or by a link.", "", [again, anew], around);
  } else said("The scene cannot be opened", problem.message, problem.suggestion, [again, anew], around);
}

function said(title: string, detail: string, suggestion: string, actions: HTMLElement[], around: Around): void {
  const heading = h("h1", { tabindex: -1 }, title);
  around.place.replaceChildren(
    h(
      "section",
      { class: "panel" },
      heading,
      h("p", {}, detail),
      h("p", { class: "quiet" }, suggestion),
      h("div", { class: "actions" }, ...actions),
    ),
  );
  document.title = `${title} - Scenelift`;
  heading.focus();
  announce(`${title}. ${detail} ${suggestion}`);
}

function button(name: Parameters<typeof icon>[0], label: string, onclick: () => void): HTMLButtonElement {
  return h("button", { type: "button", class: "plain", onclick }, icon(name), label);
}
