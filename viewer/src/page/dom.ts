/** The page's own elements, and those made from script. */

import { h } from "../element/dom";
import { type Icon, icon } from "../element/icons";

export { h, icon };

/** The element of index.html with this id. */
export function part<K extends keyof HTMLElementTagNameMap>(tag: K, id: string): HTMLElementTagNameMap[K] {
  const found = document.querySelector<HTMLElementTagNameMap[K]>(`${tag}#${id}`);
  if (!found) throw new Error(`index.html has no <${tag} id="${id}">`);
  return found;
}

/** A button that is only a drawing; its name is there for readers and as a tip. */
export function tool(name: Icon, label: string, onclick: () => void): HTMLButtonElement {
  return h("button", { type: "button", class: "tool", "aria-label": label, title: label, onclick }, icon(name));
}

let waiting: number | undefined;
let latest = "";

/** Say something to screen readers; of what comes faster than it can be heard, the latest. */
export function announce(text: string): void {
  latest = text;
  if (waiting !== undefined) return;
  part("div", "live").textContent = latest;
  waiting = window.setTimeout(() => {
    waiting = undefined;
    if (latest !== part("div", "live").textContent) announce(latest);
  }, 4000);
}
