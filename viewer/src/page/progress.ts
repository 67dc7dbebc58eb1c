/** How far something is that takes a while. */

import { announce, h } from "./dom";

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
  private readonly heading = h("h1", { tabIndex: -1 });
  private readonly bar = h("progress", { max: 1, ariaLabel: "Progress" });
  private readonly stage = h("p", { className: "stage" });
  private readonly percent = h("p", { className: "percent" });
  private readonly time = h("p", { className: "quiet time" });
  private readonly more = h("div", { className: "actions" });
  private said = "";

  /** `pictures` are those of the photos that it is about. */
  constructor(pictures: readonly (Blob | null)[], onCancel: () => void) {
    const known = pictures.filter((picture) => picture !== null).slice(0, 8);
    const strip = h("div", { className: "strip", hidden: !known.length }, ...known.map(shown));
    const cancel = h("button", { type: "button", className: "plain", onclick: onCancel }, "Cancel");
    this.element = h(
      "section",
      { className: "panel working" },
      this.heading,
      strip,
      this.bar,
      h("div", { className: "row" }, this.stage, this.percent),
      this.time,
      h("div", { className: "actions" }, this.more, cancel),
    );
  }

  focus(): void {
    this.heading.focus();
  }

  show({ title, share, stage, time = "" }: State, more?: HTMLElement): void {
    const percent = share === null ? "" : `${Math.floor(100 * share)} %`;
    this.heading.textContent = title;
    this.stage.textContent = stage;
    this.percent.textContent = percent;
    // Space is kept for it, so that nothing moves when it comes.
    this.time.textContent = time || "\u00a0";
    if (share === null) this.bar.removeAttribute("value");
    else this.bar.value = share;
    if (this.more.firstElementChild !== (more ?? null)) this.more.replaceChildren(...(more ? [more] : []));
    document.title = percent ? `${percent} - Scenelift` : `${title} - Scenelift`;
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
