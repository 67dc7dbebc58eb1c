/** What may be chosen beside the photos; nobody has to look at it. */

import type { ModelDocument } from "../api";
import { h, part } from "./dom";
import type { Item } from "./tray";
import { count } from "./words";

/** What the service takes where nothing is said (service/schemas.py). */
const USUAL = { reference: "0", focal: "shared", leftOut: "3", points: "1500000" };

/** Events: `change`, when the model is another. */
export class Options extends EventTarget {
  private readonly model = h("select", { id: "model" });
  private readonly licence = h("p", { class: "quiet" });
  private readonly reference = h("select", { id: "reference" });
  private readonly focal = h("select", { id: "focal" });
  private readonly pixels = number("pixels", "", { min: "1", step: "any", placeholder: "Pixels" });
  private readonly leftOut = number("left-out", USUAL.leftOut, { min: "0", max: "99", step: "any" });
  private readonly points = number("points", USUAL.points, { min: "1000", max: "10000000", step: "1000" });
  private readonly frames = number("frames", "", { min: "2", step: "1", placeholder: "Up to 24" });
  private readonly filmed: HTMLElement;
  private readonly first: HTMLElement;
  private models: ModelDocument[] = [];

  constructor(place: HTMLElement) {
    super();
    this.focal.append(
      h("option", { value: "shared" }, "One camera took all photos"),
      h("option", { value: "per-view" }, "Different cameras or zoom"),
      h("option", { value: "known" }, "I know it, in pixels"),
    );
    this.pixels.hidden = true;
    this.pixels.ariaLabel = "Focal length in pixels of the photos";
    this.focal.onchange = () => {
      this.pixels.hidden = this.focal.value !== "known";
      this.pixels.required = !this.pixels.hidden;
      if (!this.pixels.hidden) this.pixels.focus();
    };
    this.model.onchange = () => {
      this.describe();
      this.dispatchEvent(new Event("change"));
    };
    this.first = field("The scene starts from", this.reference, "Its camera is where the scene has its origin.");
    this.filmed = field("Photos to take from the video", this.frames, "The sharpest moments, spread over the way.");
    place.append(
      h("div", { class: "field" }, h("label", { for: "model" }, "Model"), this.model, this.licence),
      this.first,
      this.filmed,
      field("Lens", this.focal, "Phones write it into their photos.", this.pixels),
      field("Least sure share to leave out, in percent", this.leftOut, "More: cleaner, with more gaps."),
      field("Points at most", this.points, "More: finer, and larger files."),
    );
    this.follow([]);
  }

  /** The model that is chosen; undefined while none is known. */
  get chosen(): ModelDocument | undefined {
    return this.models.find((model) => model.name === this.model.value);
  }

  /** Offer these models. */
  offer(models: ModelDocument[]): void {
    const before = this.model.value;
    this.models = models;
    this.model.replaceChildren(...models.map((model) => h("option", { value: model.name }, model.name)));
    const usual = models.find((model) => model.default)?.name ?? "";
    this.model.value = models.some((model) => model.name === before) ? before : usual;
    this.describe();
    this.dispatchEvent(new Event("change"));
  }

  /** Offer these photos as the one to start from. */
  follow(items: readonly Item[]): void {
    const photos = items.filter((item) => item.kind === "photo");
    const film = items[0]?.kind === "video";
    const before = this.reference.value || USUAL.reference;
    this.reference.replaceChildren(
      h("option", { value: USUAL.reference }, "The first photo"),
      h("option", { value: "auto" }, "The photo that sees most of the others"),
      ...photos.slice(1).map((item) => h("option", { value: item.name }, item.name)),
    );
    this.reference.value = before;
    // The photo is gone, or is the first one now.
    if (!this.reference.value) this.reference.value = USUAL.reference;
    this.filmed.hidden = !film;
  }

  /** Whether all that is filled in makes sense; shows what does not. */
  valid(): boolean {
    const fields = [this.pixels, this.leftOut, this.points, this.frames].filter((input) => !input.hidden);
    const wrong = fields.find((input) => !input.checkValidity());
    if (wrong) {
      part("details", "options").open = true;
      wrong.reportValidity();
    }
    return !wrong;
  }

  /** The form's fields that say something else than the service assumes. */
  fields(items: readonly Item[]): [name: string, value: string][] {
    const index = items.findIndex((item) => item.name === this.reference.value);
    const said: [string, string, string][] = [
      ["model", this.model.value, this.models.find((model) => model.default)?.name ?? ""],
      ["reference", index < 0 ? this.reference.value : String(index), USUAL.reference],
      ["focal", this.focal.value === "known" ? this.pixels.value : this.focal.value, USUAL.focal],
      ["confidence_percentile", this.leftOut.value || USUAL.leftOut, USUAL.leftOut],
      ["max_points", this.points.value || USUAL.points, USUAL.points],
      ["frames", this.filmed.hidden ? "" : this.frames.value, ""],
    ];
    return said.filter(([, value, usual]) => value !== usual).map(([name, value]) => [name, value]);
  }

  private describe(): void {
    const model = this.chosen;
    if (!model) return;
    const licence = model.licence ? `Licence: ${model.licence}.` : "";
    const takes = `Takes ${model.min_views} to ${count(model.max_views, "photo")}.`;
    this.licence.textContent = `${takes} ${licence}`;
  }
}

function number(id: string, value: string, limits: Record<string, string>): HTMLInputElement {
  return h("input", { type: "number", inputmode: "decimal", id, value, ...limits });
}

function field(name: string, input: HTMLElement, hint: string, ...more: HTMLElement[]): HTMLElement {
  const label = h("label", { for: input.id }, name);
  return h("div", { class: "field" }, label, input, ...more, h("p", { class: "quiet" }, hint));
}
