/** One line above the photos on what happens: a distance, the photo that is stood at, what is being loaded. */

import { h } from "./dom";
import { distance } from "./words";

/** Milliseconds for which a hint stays. */
const HINT = 6_000;

export class Chip {
  readonly element = h("p", { class: "chip", part: "chip" });
  private readonly slider = h("input", {
    type: "range",
    min: 0,
    max: 100,
    value: 0,
    title: "Lay the photo over the scene",
  });
  private readonly compare = h("label", {}, h("span", { class: "quiet" }, "Photo"), this.slider);

  /** `onOpacity` is told how far the photo is to cover the scene, 0 to 1. */
  constructor(onOpacity: (opacity: number) => void) {
    this.slider.setAttribute("aria-label", "How far the photo covers the scene");
    this.slider.addEventListener("input", () => onOpacity(this.slider.valueAsNumber / 100));
  }

  /** Something to know that need not stay. */
  hint(text: string): void {
    this.text = text;
    const said = this.element.firstChild;
    setTimeout(() => this.element.firstChild === said && this.element.replaceChildren(), HINT);
  }

  get text(): string {
    return this.element.textContent;
  }

  set text(text: string) {
    this.element.replaceChildren(...(text ? [text] : []));
  }

  /** The distance between two points; null: they are still to be chosen. */
  measured(units: number | null): void {
    if (units === null) this.text = "Choose two points to measure between.";
    else
      this.element.replaceChildren(h("span", {}, h("b", {}, distance(units)), ". Photos alone do not tell real size."));
  }

  /** The photo that is stood at; it can be laid over the scene. */
  stood(name: string): void {
    this.element.replaceChildren(h("span", { class: "name" }, name), this.compare);
  }
}
