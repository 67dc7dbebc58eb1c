/** What produced a scene, what is doubtful about it, and how to move in it. */

import type { JobDocument } from "../api";
import type { Shown } from "../scene/view";
import { h } from "./dom";
import { icon } from "./icons";
import { count, duration, seen, times, when } from "./words";

const KEYS: [string, string][] = [
  ["Drag", "turn around the scene"],
  ["Right drag, two fingers", "move sideways"],
  ["Wheel, pinch", "nearer and further"],
  ["Double click, double tap", "turn around that spot"],
  ["Arrow keys", "turn, or walk"],
  ["W A S D", "walk, Shift is faster"],
  [", and .", "previous and next photo"],
  ["H", "first view"],
  ["G", "walk or turn"],
  ["C", "cameras"],
  ["P", "photos"],
  ["M", "measure, Esc clears"],
  ["F", "full screen"],
];

/** Whether there is something that its viewer should know. */
export function doubtful(job: JobDocument): boolean {
  return job.low_confidence || job.warnings.length > 0;
}

export class About {
  private readonly seen = h("dd");
  private readonly row = [h("dt", { hidden: true }, "You see"), this.seen];
  readonly content: HTMLElement[];

  constructor(job: JobDocument) {
    const facts = h("dl", { class: "facts" }, ...this.row);
    const fact = (name: string, value: string) => facts.append(h("dt", {}, name), h("dd", {}, value));
    fact("Made from", count(job.views.length, "photo"));
    fact("Model", job.model);
    if (job.started_at && job.finished_at) {
      fact("Took", duration((Date.parse(job.finished_at) - Date.parse(job.started_at)) / 1000));
      fact("Made on", when(job.finished_at));
    }
    if (job.expires_at) fact("Kept until", when(job.expires_at));
    fact("Lengths", "in units of its own");
    const unit = h(
      "p",
      { class: "quiet" },
      "Photos alone do not tell how large a place is. A scene is right but for its size.",
    );
    this.content = [...doubts(job), facts, unit, photos(job), ...seconds(job), keys()];
  }

  /** What is drawn now. */
  set shown(shown: Shown) {
    this.row[0]!.hidden = false;
    this.seen.textContent = seen(shown);
  }
}

function doubts(job: JobDocument): HTMLElement[] {
  if (!doubtful(job)) return [];
  const notes = job.low_confidence ? ["This scene is doubtful as a whole: take what you see with care."] : [];
  const list = h("ul", {}, ...[...notes, ...job.warnings].map((note) => h("li", {}, note)));
  return [h("div", { class: "doubts" }, icon("warning"), list)];
}

function photos(job: JobDocument): HTMLElement {
  const list = h("ol", { class: "photos" });
  for (const view of job.views) {
    const size = `${view.width} × ${view.height}`;
    const across = view.focal ? Math.round((360 / Math.PI) * Math.atan(view.width / (2 * view.focal))) : 0;
    const lens = view.focal
      ? `focal length ${Math.round(view.focal)} px, sees ${across}° across`
      : "could not be placed";
    const name = view["reference"] === true ? `${view.name} (the main photo)` : view.name;
    list.append(h("li", {}, h("b", {}, name), h("span", { class: "quiet" }, `${size}, ${lens}`)));
  }
  return fold(`Photos (${job.views.length})`, list);
}

function seconds(job: JobDocument): HTMLElement[] {
  const list = h("dl", { class: "facts" });
  for (const { name, seconds } of times(job)) list.append(h("dt", {}, name), h("dd", {}, duration(seconds)));
  return list.childElementCount ? [fold("Where the time went", list)] : [];
}

function keys(): HTMLElement {
  const list = h("dl", { class: "facts keys" });
  for (const [key, what] of KEYS) list.append(h("dt", {}, key), h("dd", {}, what));
  return fold("How to move", list);
}

function fold(title: string, content: HTMLElement): HTMLElement {
  return h("details", {}, h("summary", {}, title), content);
}
