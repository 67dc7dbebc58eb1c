/** The bar of tools. Where it is narrow, the rarer ones move into a menu. */

import type { Representation } from "../scene/view";
import { h } from "./dom";
import { type Icon, icon } from "./icons";
import { REPRESENTATIONS } from "./words";

/** Stay on until used again. */
export type Switch = "photos" | "walk" | "frusta" | "measure" | "fullscreen";
/** Open a panel. */
export type PanelName = "settings" | "downloads" | "info";
export type Tool = Switch | PanelName | "home" | "picture";

interface Button {
  tool: Tool;
  label: string;
  title: string;
  icon: Icon;
}

const MAIN: Button[] = [
  { tool: "home", label: "First view", title: "Back to the first view (H)", icon: "home" },
  { tool: "photos", label: "Photos", title: "Show the photos: stand where one was taken (P)", icon: "photos" },
  { tool: "settings", label: "Settings", title: "Settings: how the scene is drawn", icon: "settings" },
];
const MORE: Button[] = [
  { tool: "walk", label: "Walk", title: "Walk through the scene instead of turning it (G)", icon: "walk" },
  { tool: "frusta", label: "Cameras", title: "Show where the photos were taken (C)", icon: "frusta" },
  { tool: "measure", label: "Measure", title: "Measure between two points (M)", icon: "measure" },
  { tool: "picture", label: "Save a picture", title: "Save what you see as a picture", icon: "picture" },
  { tool: "downloads", label: "Downloads", title: "Download the scene's files", icon: "download" },
  { tool: "info", label: "About this scene", title: "About this scene, and help", icon: "info" },
  { tool: "fullscreen", label: "Full screen", title: "Full screen (F)", icon: "fullscreen" },
];
const SWITCHES: Tool[] = ["photos", "walk", "frusta", "measure", "fullscreen"] satisfies Switch[];
const PANELS: Tool[] = ["settings", "downloads", "info"] satisfies PanelName[];
/** Those that need no drawn scene. */
const ALWAYS: Tool[] = ["downloads", "info", "fullscreen"];

export class Toolbar {
  private readonly buttons = new Map<Tool, HTMLButtonElement>();
  private readonly choices = new Map<Representation, { label: HTMLElement; input: HTMLInputElement }>();
  private readonly choice = h("fieldset", { class: "choice", part: "representations", hidden: true });
  private readonly more = h("div", { class: "more", id: "more" });
  private readonly moreButton = h("button", {
    type: "button",
    class: "tool open-more",
    title: "More tools",
    "aria-label": "More tools",
    "aria-controls": "more",
    "aria-expanded": "false",
    onclick: () => this.unfold(!this.unfolded),
  });
  readonly element: HTMLElement;

  constructor(
    private readonly use: (tool: Tool) => void,
    private readonly show: (representation: Representation) => void,
  ) {
    this.choice.append(h("legend", { class: "unseen" }, "Shown as"));
    for (const [name, text] of Object.entries(REPRESENTATIONS) as [Representation, string][]) {
      const input = h("input", { type: "radio", name: "representation", value: name, onchange: () => this.show(name) });
      const title = `Show the scene as ${text.toLowerCase()}`;
      const label = h("label", { title }, input, icon(name), h("span", {}, text));
      this.choices.set(name, { label, input });
      this.choice.append(label);
    }
    this.moreButton.append(icon("more"));
    this.more.append(...MORE.map((button) => this.button(button)));
    this.element = h(
      "div",
      { class: "toolbar", part: "toolbar", role: "group", "aria-label": "Tools" },
      this.choice,
      ...MAIN.map((button) => this.button(button)),
      this.moreButton,
      this.more,
    );
  }

  /** Which representations there are, and which is shown, or will be. */
  offer(representations: Representation[], shown: Representation | null): void {
    this.choice.hidden = representations.length < 2;
    for (const [name, { label, input }] of this.choices) {
      label.hidden = !representations.includes(name);
      input.checked = name === shown;
    }
  }

  /** Without a scene most tools have nothing to do: they wait for it, or are not there. */
  set scene(scene: "drawn" | "awaited" | "none") {
    for (const [tool, button] of this.buttons) {
      button.disabled = scene !== "drawn" && !ALWAYS.includes(tool);
      button.hidden = scene === "none" && button.disabled;
    }
    this.choice.disabled = scene !== "drawn";
    if (scene !== "drawn") this.choice.hidden = true;
    this.element.classList.toggle("few", scene === "none");
  }

  /** Whether a switch is on, or a panel open. */
  mark(tool: Switch | PanelName, on: boolean): void {
    const button = this.buttons.get(tool)!;
    button.setAttribute(PANELS.includes(tool) ? "aria-expanded" : "aria-pressed", String(on));
    if (tool === "fullscreen") button.firstElementChild!.replaceWith(icon(on ? "shrink" : "fullscreen"));
  }

  /** A dot that says: there is something to read here. */
  set note(note: boolean) {
    this.buttons.get("info")!.classList.toggle("note", note);
    this.moreButton.classList.toggle("note", note);
  }

  focus(tool: Tool): void {
    const button = this.buttons.get(tool)!;
    (button.offsetParent ? button : this.moreButton).focus();
  }

  get unfolded(): boolean {
    return this.moreButton.getAttribute("aria-expanded") === "true";
  }

  /** Open or close the menu of rarer tools, where there is one. */
  unfold(unfolded: boolean): void {
    // What goes out of sight must not take the keyboard along.
    if (!unfolded && this.more.matches(":focus-within")) this.moreButton.focus();
    this.moreButton.setAttribute("aria-expanded", String(unfolded));
    this.more.classList.toggle("unfolded", unfolded);
  }

  private button({ tool, label, title, icon: shape }: Button): HTMLButtonElement {
    const use = () => {
      this.unfold(false);
      this.use(tool);
    };
    const button = h("button", { type: "button", class: "tool", title, "aria-label": label, onclick: use });
    button.append(icon(shape), h("span", {}, label));
    this.buttons.set(tool, button);
    if (SWITCHES.includes(tool)) button.setAttribute("aria-pressed", "false");
    if (PANELS.includes(tool)) button.setAttribute("aria-expanded", "false");
    return button;
  }
}
