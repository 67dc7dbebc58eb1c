/** The page at `/`: photos in, a job watched, its scene. The address says which of them is shown. */

import { Problem } from "./api";
import { announce, h, part } from "./page/dom";
import { onFiles } from "./page/drop";
import { card, type Example, examples } from "./page/gallery";
import { type Around, showExample, showJob } from "./page/job";
import { Access } from "./page/key";
import { Options } from "./page/options";
import { ProgressCard } from "./page/progress";
import { watchReadiness } from "./page/ready";
import { Recent } from "./page/recent";
import { withdraw } from "./page/resumable";
import { type Sending, send } from "./page/send";
import { tiny } from "./page/thumbnail";
import { type Item, Tray } from "./page/tray";

const base = `${location.origin}/`;
const root = new URL(import.meta.env.BASE_URL, base).href;
const main = part("main", "main");
const home = part("div", "home");
const place = part("div", "work");
const start = part("button", "start");
const hint = part("p", "hint");
const alarm = part("div", "alarm");

const access = new Access(base);
const tray = new Tray(part("ol", "photos"), part("div", "tray-notes"));
const options = new Options(part("div", "choices"));
const recent = new Recent(access, part("ul", "recent-list"));
const gallery = examples(root);

/** The job that the photos in the tray became; they are its photos until they change. */
let made = "";
/** Ends what is shown: a job that is watched, photos that are sent. */
let shown = new AbortController();

const around: Around = {
  access,
  recent,
  base,
  place,
  pictures: (id) => (id === made ? tray.items.map((item) => item.picture) : null),
  back: () => {
    // The job that was left is no place to come back to.
    history.replaceState(null, "", location.pathname);
    route();
    main.focus();
  },
  anew: () => {
    tray.clear();
    go("");
  },
  again: () => {
    around.back();
    void submit();
  },
};

/** Another state of the page, with an address of its own. */
function go(query: string): void {
  history.pushState(null, "", location.pathname + query);
  scrollTo({ top: 0 });
  route();
  // What comes instead takes the focus itself; home has no such place.
  if (!home.hidden) main.focus({ preventScroll: true });
}

/** Show what the address says. */
function route(): void {
  shown.abort();
  shown = new AbortController();
  const query = new URLSearchParams(location.search);
  const job = query.get("job");
  const example = query.get("example");
  home.hidden = job !== null || example !== null;
  place.hidden = !home.hidden;
  if (job !== null) void showJob(job, around, shown.signal);
  else if (example !== null) void openExample(example);
  else showHome();
}

function showHome(): void {
  place.replaceChildren();
  document.title = "Scenelift";
  follow();
  void recent.refresh();
  if (location.hash === "#recent") part("section", "recent").scrollIntoView();
}

async function openExample(name: string): Promise<void> {
  const { signal } = shown;
  const found = (await gallery).find((example: Example) => example.name === name);
  if (signal.aborted) return;
  if (found) await showExample(found, new URL(found.job, root).href, around);
  else go("");
}

/** What hangs on the photos and on the model. */
function follow(): void {
  const items = tray.items;
  const filled = items.length > 0;
  home.classList.toggle("filled", filled);
  // To a zip file or a video nothing can be added.
  home.classList.toggle("alone", filled && items[0]!.kind !== "photo");
  options.follow(items);
  const [ready, words] = verdict(items);
  start.disabled = !ready;
  hint.textContent = words;
  part("p", "summary").textContent = filled ? tray.summary() : "";
}

/** Whether these make a scene, and what there is to say about it. */
function verdict(items: readonly Item[]): [ready: boolean, words: string] {
  const model = options.chosen;
  const [least, most] = [Math.max(2, model?.min_views ?? 2), model?.max_views ?? 64];
  const all = items.length;
  if (items[0]?.kind === "video") return [true, "Sharp moments between which the camera moves are taken from it."];
  if (items[0]?.kind === "archive") return [true, "Its photos are taken in the order of their names."];
  if (all < least) return [false, `Add ${least - all === 1 ? "one more photo" : `${least - all} photos`} of the same place.`];
  if (all > most) return [false, `${model?.name ?? "The service"} takes ${most} photos at most: remove ${all - most}.`];
  if (all > 12 && most > 12) return [true, "4 to 12 photos are best; more take longer."];
  if (all < 4 && most >= 4) return [true, "This works. 4 to 12 photos are best."];
  return [true, ""];
}

async function submit(): Promise<void> {
  if (start.disabled || !options.valid()) return;
  alarm.replaceChildren();
  const items = [...tray.items];
  const sending = new AbortController();
  // Going elsewhere in the page ends it too.
  const elsewhere = shown.signal;
  const signal = AbortSignal.any([elsewhere, sending.signal]);
  const progress = new ProgressCard(items.map((item) => item.picture), () => sending.abort());
  const draw = (state: Sending) => drawSending(progress, state);
  draw({ phase: "upload", share: 0 });
  home.hidden = true;
  place.hidden = false;
  place.replaceChildren(progress.element);
  scrollTo({ top: 0 });
  progress.focus();
  addEventListener("beforeunload", stay);
  try {
    const job = await send(access, items, options.fields(items), draw, signal);
    made = job.id;
    const picture = items.find((item) => item.picture)?.picture;
    recent.keep(job, picture ? await tiny(picture) : "");
    go(`?job=${job.id}`);
  } catch (error) {
    if (elsewhere.aborted) return;
    route();
    if (sending.signal.aborted) {
      announce("Cancelled. The photos are still here.");
      start.focus();
    } else {
      refuse(error);
    }
  } finally {
    removeEventListener("beforeunload", stay);
  }
}

function drawSending(progress: ProgressCard, state: Sending): void {
  const title = "Sending the photos";
  if (state.phase === "upload") {
    progress.show({ title, share: state.share, stage: "Uploading" });
  } else if (state.phase === "check") {
    progress.show({ title, share: null, stage: "The service looks at them" });
  } else {
    const { seconds, problem, now } = state;
    const sooner = h("button", { type: "button", class: "plain", onclick: now }, "Try now");
    progress.show({ title, share: null, stage: problem.message, time: `Trying again in ${seconds} s.` }, sooner);
  }
}

/** Say why the photos were not taken: at the photo that it is about, or beside the button. */
function refuse(error: unknown): void {
  if (!(error instanceof Problem)) throw error;
  if (tray.blame(error)) return;
  const sentence = error.status === 401 ? "Without its key the service takes no photos." : error.message;
  alarm.replaceChildren(
    h("p", {}, h("strong", {}, sentence)),
    h("p", {}, error.status === 401 ? "" : error.suggestion),
  );
  start.focus();
}

function stay(event: BeforeUnloadEvent): void {
  event.preventDefault();
}

/** A file chosen, dropped, pasted or taken with the camera. */
async function add(files: readonly File[]): Promise<void> {
  if (home.hidden || !files.length) return;
  alarm.replaceChildren();
  await tray.add(files);
}

function wireLinks(): void {
  addEventListener("popstate", route);
  document.addEventListener("click", (event) => {
    const link = event.target instanceof Element ? event.target.closest("a") : null;
    const plain = event.button === 0 && !event.ctrlKey && !event.metaKey && !event.shiftKey && !event.altKey;
    if (!link || !plain || link.target || link.origin !== location.origin) return;
    const own = link.pathname === location.pathname || link.matches(".wordmark");
    if (!own || link.matches(".skip")) return;
    event.preventDefault();
    go(link.search + link.hash);
  });
}

async function showGallery(): Promise<void> {
  const found = await gallery;
  part("ul", "gallery-list").replaceChildren(...found.map((example) => card(example, root)));
  part("section", "gallery").hidden = !found.length;
}

async function showModels(): Promise<void> {
  const wanted = part("div", "key-wanted");
  try {
    options.offer(await access.service.models());
    wanted.hidden = true;
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    // Examples can be looked at without a key: it is asked for when it is needed, or wished for.
    wanted.hidden = error.status !== 401;
  }
}

function followKey(): void {
  part("button", "forget-key").hidden = !access.keyed;
  void showModels();
  if (!home.hidden) void recent.refresh();
}

function followRecent(): void {
  part("section", "recent").hidden = part("a", "to-recent").hidden = recent.empty;
}

tray.addEventListener("change", () => {
  made = "";
  follow();
});
tray.addEventListener("removed", (event) => {
  const item = (event as CustomEvent<Item>).detail;
  void withdraw(access.service, item.file);
});
options.addEventListener("change", follow);
recent.addEventListener("change", followRecent);
access.addEventListener("change", followKey);
part("button", "forget-key").onclick = () => access.forget();
part("button", "enter-key").onclick = () => void access.ask();
part("button", "clear").onclick = () => {
  tray.clear();
  part("input", "choose").focus();
};
start.onclick = () => void submit();
onFiles((files) => void add(files), () => !home.hidden);
wireLinks();
followRecent();
followKey();
route();
void showGallery();
void watchReadiness(access, part("div", "banner"), () => void showModels());
