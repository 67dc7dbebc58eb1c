/** Scenes that came with the service: something to look at before the first photo. */

import { h } from "./dom";
import { duration } from "./words";

export interface Example {
  readonly name: string;
  readonly title: string;
  readonly note: string;
  readonly views: number;
  readonly seconds: number;
  /** The job's document and its picture, below `/static/`. */
  readonly job: string;
  readonly preview: string;
}

/** Those that there are; none where the service has no gallery. */
export async function examples(root: string): Promise<Example[]> {
  const response = await fetch(new URL("gallery/index.json", root)).catch(() => null);
  return response?.ok ? response.json() : [];
}

export function about(example: Example): string {
  return `${example.note}. Made in ${duration(example.seconds)}.`;
}

/** A card that opens the example's scene. */
export function card(example: Example, root: string): HTMLLIElement {
  const picture = new URL(example.preview, root).href;
  return h(
    "li",
    {},
    h(
      "a",
      { href: `?example=${encodeURIComponent(example.name)}`, class: "card" },
      h("img", { src: picture, alt: "", loading: "lazy", width: 640, height: 480 }),
      h("strong", {}, example.title),
      h("span", { class: "quiet" }, about(example)),
    ),
  );
}
