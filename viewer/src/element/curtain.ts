/** What covers the scene while there is none: the preview picture, how far it is, or what is wrong. */

import type { JobDocument, Problem } from "../api";
import { h } from "./dom";
import { icon } from "./icons";
import { bytes, count, percent, stage } from "./words";

export class Curtain {
  private readonly poster = h("img", { class: "poster", part: "poster", alt: "", hidden: true });
  private readonly bar = h("progress", { class: "bar", part: "progress", max: 1, "aria-label": "Progress" });
  private readonly card = h("div", { class: "card", part: "message" });
  readonly element = h("div", { class: "curtain" }, this.poster, this.card, this.bar);

  /** The preview picture, kept beneath everything until the scene is drawn. */
  set picture(url: string | null) {
    this.poster.hidden = url === null;
    if (url === null) this.poster.removeAttribute("src");
    else if (this.poster.src !== url) this.poster.src = url;
    this.poster.alt = url === null ? "" : "A picture of the scene";
  }

  /** Nothing is loaded until somebody asks. */
  wait(play: () => void): void {
    this.put("idle");
    const button = h("button", {
      type: "button",
      class: "play",
      "aria-label": "Open the scene",
      title: "Open the scene",
      onclick: play,
    });
    button.append(icon("play"));
    this.card.append(button);
  }

  /** The job's document is on its way. */
  fetch(): void {
    this.put("fetching");
    this.bar.removeAttribute("value");
  }

  /** The job has not ended. */
  work(job: JobDocument): void {
    this.put("working");
    this.bar.value = job.progress;
    const queued = job.status === "queued";
    const ahead = job.queue_position ? `${count(job.queue_position, "other scene")} first.` : "It is next.";
    this.card.append(
      h("p", { class: "title" }, stage(job.stage)),
      h("p", { class: "large" }, queued ? "" : percent(job.progress)),
      h("p", { class: "quiet" }, queued ? ahead : "The scene opens here by itself."),
    );
  }

  /** The scene's files are on their way. */
  load(share: number, total = 0): void {
    this.put("loading");
    this.bar.value = share;
    const much = total ? `: ${percent(share)} of ${bytes(total)}` : "";
    this.card.append(h("p", { class: "quiet" }, `Opening the scene${much}`));
  }

  /** What went wrong, and what to do. */
  fail(problem: Problem, retry: (() => void) | null): void {
    this.put("failed");
    this.card.append(icon("warning"), h("p", { class: "title" }, problem.message));
    if (problem.suggestion) this.card.append(h("p", { class: "quiet" }, problem.suggestion));
    if (retry) this.card.append(h("button", { type: "button", class: "button", onclick: retry }, "Try again"));
  }

  /** A picture must do: there is no drawing in 3D here. */
  still(why: string): void {
    this.put("still");
    this.card.append(h("p", {}, why));
  }

  lift(): void {
    this.put("lifted");
  }

  private put(state: string): void {
    this.element.dataset["state"] = state;
    this.bar.hidden = !["fetching", "working", "loading"].includes(state);
    this.card.replaceChildren();
  }
}
