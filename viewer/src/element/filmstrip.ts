/** The photos in a row: choosing one goes to where it was taken. */

import type { JobDocument } from "../api";
import { h } from "./dom";

/** photos.webp: square cells, row by row, ceil(sqrt(N)) a row; each photo fitted into its top left. */
const CELL = 384;
/** CSS pixels. */
const HEIGHT = 56;

export class Filmstrip {
  private buttons: HTMLButtonElement[] = [];
  private marked: number | null = null;
  readonly element = h("div", { class: "filmstrip", part: "filmstrip", role: "group", "aria-label": "Photos" });

  constructor(private readonly stand: (view: number) => void) {
    this.element.addEventListener("keydown", (event) => this.key(event));
  }

  /** Show a job's photos; without the sheet of them, their numbers. */
  fill(job: JobDocument, sheet: string | null): void {
    const columns = Math.ceil(Math.sqrt(job.views.length));
    this.buttons = job.views.map((view, index) => {
      const placed = view["placed"] !== false;
      const where = placed ? "stand where it was taken" : "could not be placed";
      const button = h("button", {
        type: "button",
        title: `${view.name}: ${where}`,
        "aria-label": `Photo ${index + 1} of ${job.views.length}, ${view.name}: ${where}`,
        tabindex: -1,
        disabled: !placed,
        onclick: () => this.stand(index),
      });
      const fit = CELL / Math.max(view.width, view.height);
      const scale = HEIGHT / (view.height * fit);
      button.style.width = `${Math.min(Math.max(view.width * fit * scale, 44), 2 * HEIGHT)}px`;
      if (sheet) {
        const [column, row] = [index % columns, Math.floor(index / columns)];
        button.style.backgroundImage = `url("${sheet}")`;
        button.style.backgroundSize = `${columns * CELL * scale}px auto`;
        button.style.backgroundPosition = `${-column * CELL * scale}px ${-row * CELL * scale}px`;
      } else {
        button.append(String(index + 1));
      }
      return button;
    });
    this.element.replaceChildren(...this.buttons);
    this.mark(null);
  }

  /** The photo that is stood at. */
  mark(view: number | null): void {
    this.marked = view;
    for (const [index, button] of this.buttons.entries()) {
      if (index === view) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
    // One stop for the tab key; arrow keys do the rest.
    const stop = view ?? this.buttons.findIndex((button) => !button.disabled);
    for (const [index, button] of this.buttons.entries()) button.tabIndex = index === stop ? 0 : -1;
    const chosen = view === null ? undefined : this.buttons[view];
    if (chosen) {
      const left = chosen.offsetLeft - (this.element.clientWidth - chosen.offsetWidth) / 2;
      this.element.scrollTo({
        left,
        behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "instant" : "smooth",
      });
    }
  }

  /** Go to the next placed photo in a direction, 1 or -1, round and round. */
  step(direction: number): void {
    const from = this.marked ?? (direction > 0 ? -1 : 0);
    for (let steps = 1; steps <= this.buttons.length; steps++) {
      const index = (from + direction * steps + this.buttons.length * 2) % this.buttons.length;
      if (!this.buttons[index]!.disabled) return this.go(index);
    }
  }

  private go(index: number): void {
    const inside = this.element.matches(":focus-within");
    this.stand(index);
    this.mark(index);
    if (inside) this.buttons[index]!.focus({ preventScroll: true });
  }

  private key(event: KeyboardEvent): void {
    const direction = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!direction) return;
    event.preventDefault();
    event.stopPropagation();
    this.step(direction);
  }
}
