/** How the scene is drawn, as its viewer likes it. Everything acts at once. */

import type { SceneView, Shown } from "../scene/view";
import { h } from "./dom";
import { percent, seen } from "./words";

/** The backgrounds that have a name; every CSS colour is one, too. */
export const BACKGROUNDS: Record<string, string> = {
  auto: "var(--scene)",
  light: "#ecedf0",
  dark: "#202428",
  black: "#000000",
};
const LABELS: Record<string, string> = { auto: "Auto", light: "Light", dark: "Dark", black: "Black" };

export class Settings {
  private leastSure = 0;
  private pointSize = 1;
  private readonly sureRow: HTMLElement;
  private readonly sizeRow: HTMLElement;
  private readonly seen = h("p", { class: "quiet" });
  private readonly radios: HTMLInputElement[];
  private readonly colour = h("input", { type: "color", "aria-label": "Own colour", value: "#334155" });
  readonly content: HTMLElement[];

  constructor(
    private readonly view: () => SceneView | null,
    private readonly onBackground: (background: string) => void,
  ) {
    this.sureRow = slider("Hide the least sure", { max: 90, step: 1, value: 0 }, (value) => {
      this.leastSure = value / 100;
      this.apply();
      return percent(this.leastSure);
    });
    this.sizeRow = slider("Point size", { min: -2, max: 2, step: 0.1, value: 0 }, (value) => {
      this.pointSize = 2 ** value;
      this.apply();
      return `× ${this.pointSize.toFixed(1)}`;
    });
    this.radios = [...Object.keys(BACKGROUNDS), ""].map((value) =>
      h("input", {
        type: "radio",
        name: "background",
        value,
        onchange: () => this.onBackground(value || this.colour.value),
      }),
    );
    this.colour.addEventListener("input", () => this.onBackground(this.colour.value));
    const background = h(
      "fieldset",
      { class: "row" },
      h("legend", {}, "Background"),
      h(
        "div",
        { class: "swatches" },
        ...this.radios.map((radio) => {
          const swatch = radio.value ? h("i", { class: radio.value }) : this.colour;
          if (radio.value && radio.value !== "auto") swatch.style.backgroundColor = BACKGROUNDS[radio.value]!;
          return h("label", {}, radio, swatch, LABELS[radio.value] ?? "Own");
        }),
      ),
    );
    this.content = [this.sureRow, this.sizeRow, background, this.seen];
  }

  /** Tell a scene that has just been opened, or a slider that has moved. */
  apply(): void {
    const view = this.view();
    if (!view) return;
    view.leastSure = this.leastSure;
    view.pointSize = this.pointSize;
  }

  /** What is drawn now. A mesh stays whole, and the size of points is of use for points alone. */
  set shown(shown: Shown) {
    this.sureRow.hidden = shown.representation === "mesh";
    this.sizeRow.hidden = shown.representation !== "points";
    // Fewer than asked for, by more than rounding.
    const fewer = shown.drawn < 0.98 * (1 - this.leastSure) * shown.total;
    const less = fewer ? " Slow devices draw fewer, above all while moving." : "";
    this.seen.textContent = `Drawn now: ${seen(shown)}.${less}`;
  }

  set background(background: string) {
    const value = background in BACKGROUNDS ? background : "";
    for (const radio of this.radios) radio.checked = radio.value === value;
    if (/^#[0-9a-f]{6}$/i.test(background)) this.colour.value = background;
  }
}

/** A labelled slider; `act` is told its value and says it in words. */
function slider(label: string, range: Record<string, number>, act: (value: number) => string): HTMLElement {
  const output = h("output");
  // A label belongs to the first of its elements that can have one, and that is the output.
  const input = h("input", { type: "range", min: 0, "aria-label": label, ...range });
  const update = () => {
    output.value = act(input.valueAsNumber);
    input.setAttribute("aria-valuetext", output.value);
  };
  input.addEventListener("input", update);
  update();
  return h("label", { class: "row" }, h("span", {}, label), output, input);
}
