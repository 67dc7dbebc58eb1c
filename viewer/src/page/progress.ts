/** How far something is that takes a while. */

import { announce, h } from "./dom";
import { percent } from "./words";

interface State {
  readonly title: string;
  /** 0 to 1; null: nobody knows. */
  readonly share: number | null;
  /** What goes on now. */
  readonly stage: string;
  /** How long it has taken, and will. */
  readonly time?: string;
}

export class ProgressCard {
  readonly element: HTMLElement;
  private readonly heading = h("h1", { tabindex: -1 });
  private readonly bar = h("progress", { max: 1, "aria-label": "Progress" });
  private readonly stage = h("p", { class: "stage" });
  private readonly percent = h("p", { class: "percent" });
  private readonly time = h("p", { class: "quiet time" });
  private readonly more = h("div", { class: "actions" });
  private said = "";

  /** `pictures` are those of the photos that it is about. */
  constructor(pictures: readonly (Blob | null)[], onCancel: () => void) {
    const known = pictures.filter((picture) => picture !== null).slice(0, 8);
    const strip = h("div", { class: "strip", hidden: !known.length }, ...known.map(shown));
    const cancel = h("button", { type: "button", class: "plain", onclick: onCancel }, "Cancel");
    this.element = h(
      "section",
      { class: "panel working" },
      this.heading,
      strip,
      this.bar,
      h("div", { class: "row" }, this.stage, this.percent),
      this.time,
      h("div", { class: "actions" }, this.more, cancel),
    );
  }

  focus(): void {
    this.heading.focus();
  }

  show({ title, share, stage, time = "" }: State, more?: HTMLElement): void {
    const done = share === null ? "" : percent(share);
    this.heading.textContent = title;
    this.stage.textContent = stage;
    this.percent.textContent = done;
    // Space is kept for it, so that nothing moves when it comes.
    this.time.textContent = time || "\u00a0";
    if (share === null) this.bar.removeAttribute("value");
    else this.bar.value = share;
    if (this.more.firstElementChild !== (more ?? null)) this.more.replaceChildren(...(more ? [more] : []));
    document.title = done ? `${done} - Scenelift` : `${title} - Scenelift`;
    // Not every percent: each stage, and each quarter.
    const quarter = share === null ? "" : `, ${25 * Math.floor(4 * share)} %`;
    if (this.said !== stage + quarter) announce(stage + quarter);
    this.said = stage + quarter;
  }
}

function shown(picture: Blob): HTMLImageElement {
  const src = URL.createObjectURL(picture);
  const image = h("img", { src, alt: "" });
  image.onload = image.onerror = () => URL.revokeObjectURL(src);
  return image;
}

/** Guesses from how fast it went since this was made. */
export class Estimate {
  private readonly began = Date.now();
  private first: number | undefined;

  /** Seconds that are left when so much is done; undefined while that would be a wild guess. */
  left(share: number): number | undefined {
    this.first ??= share;
    const seconds = (Date.now() - this.began) / 1000;
    const gained = share - this.first;
    return seconds > 4 && gained > 0.08 ? (seconds / gained) * (1 - share) : undefined;
  }
}
