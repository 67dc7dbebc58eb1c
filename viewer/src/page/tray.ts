/** The photos that are to become a scene: shown at once, put in order, taken out. */

import type { Problem } from "../api";
import { announce, h, icon, tool } from "./dom";
import { type Kind, kindOf, plainName, same, sorted } from "./files";
import { thumbnail } from "./thumbnail";
import { bytes, count } from "./words";

export interface Item {
  readonly file: File;
  readonly kind: Kind;
  /** What the service is told; no two are the same. */
  readonly name: string;
  /** A small picture of it, once there is one. */
  picture: Blob | null;
  readonly tile: Tile;
}

/** Events: `change`, whatever changed; `removed` (detail: the item). */
export class Tray extends EventTarget {
  private list: Item[] = [];

  /** Photos are shown in `tiles`; what there is to say about those that came goes into `notes`. */
  constructor(
    private readonly tiles: HTMLOListElement,
    private readonly notes: HTMLElement,
  ) {
    super();
    tiles.addEventListener("dragover", (event) => this.dragOver(event));
    tiles.addEventListener("dragend", () => this.dragEnd());
  }

  get items(): readonly Item[] {
    return this.list;
  }

  get bytes(): number {
    return this.list.reduce((sum, item) => sum + item.file.size, 0);
  }

  /** Take what is new of these files, and say what is not taken. */
  async add(files: readonly File[]): Promise<void> {
    const said: string[] = [];
    const strange = files.filter((file) => kindOf(file) === null);
    let known = 0;
    for (const file of sorted(files)) {
      const kind = kindOf(file);
      if (kind === null) continue;
      // A zip file or a video makes a scene by itself.
      if (this.list.length && (kind !== "photo" || this.list[0]!.kind !== "photo")) {
        said.push(alone(kind === "photo" ? this.list[0]!.kind : kind, file.name));
      } else if (await this.has(file)) {
        known++;
      } else {
        this.put(file, kind);
      }
    }
    if (known) said.push(known === 1 ? "One photo was here already." : `${known} photos were here already.`);
    if (strange.length) {
      const names = strange.slice(0, 3).map((file) => file.name).join(", ");
      const more = strange.length > 3 ? ` and ${strange.length - 3} more` : "";
      said.push(`Not taken, as photos are JPEG, PNG, WebP, HEIC, AVIF, TIFF or BMP: ${names}${more}.`);
    }
    this.notes.replaceChildren(...[...new Set(said)].map((text) => h("p", {}, text)));
    this.changed();
    announce([this.summary(), ...said].join(" "));
  }

  clear(): void {
    for (const item of [...this.list]) this.take(item);
    this.notes.replaceChildren();
    this.changed();
  }

  /** Mark the photo that a problem names. False where it names none of them. */
  blame(problem: Problem): boolean {
    const part = /^Part (\d+) of the form/.exec(problem.message);
    const item = part
      ? this.list[Number(part[1]) - 1]
      : this.list.find((one) => problem.message.startsWith(`${one.name} `));
    if (!item) return false;
    const sentence = part ? problem.message.replace(part[0], item.name) : problem.message;
    item.tile.fault(`${sentence} ${problem.suggestion}`.trim());
    item.tile.element.scrollIntoView({ block: "nearest" });
    item.tile.focusRemove();
    announce(sentence);
    return true;
  }

  /** How many photos, and how large. */
  summary(): string {
    const first = this.list[0];
    if (!first) return "No photos.";
    const size = bytes(this.bytes);
    if (first.kind === "photo") return `${count(this.list.length, "photo")}, ${size}`;
    return `${first.kind === "video" ? "One video" : "One zip file"}, ${size}`;
  }

  private async has(file: File): Promise<boolean> {
    for (const item of this.list) if (await same(item.file, file)) return true;
    return false;
  }

  private put(file: File, kind: Kind): void {
    const name = plainName(file.name, new Set(this.list.map((item) => item.name)));
    const tile = new Tile(name, kind, {
      move: (by) => this.move(item, by),
      remove: () => this.remove(item),
    });
    const item: Item = { file, kind, name, picture: null, tile };
    this.list.push(item);
    this.tiles.append(tile.element);
    if (kind !== "photo") return;
    void thumbnail(file, 360).then((picture) => {
      if (!this.list.includes(item)) return;
      item.picture = picture;
      tile.show(picture);
    });
  }

  private move(item: Item, by: -1 | 1): void {
    const index = this.list.indexOf(item);
    const other = this.list[index + by];
    if (!other) return;
    this.list[index] = other;
    this.list[index + by] = item;
    // Moving the other one leaves the focus where it is.
    if (by > 0) item.tile.element.before(other.tile.element);
    else item.tile.element.after(other.tile.element);
    this.changed();
    announce(`${item.name} is now photo ${index + by + 1} of ${this.list.length}.`);
  }

  private remove(item: Item): void {
    const index = this.list.indexOf(item);
    this.take(item);
    (this.list[index] ?? this.list[index - 1])?.tile.focusRemove();
    this.changed();
    announce(`${item.name} is removed. ${this.summary()}`);
  }

  private take(item: Item): void {
    this.list = this.list.filter((one) => one !== item);
    item.tile.drop();
    this.dispatchEvent(new CustomEvent("removed", { detail: item }));
  }

  private dragOver(event: DragEvent): void {
    const held = this.tiles.querySelector(".held");
    if (!held) return;
    event.preventDefault();
    const over = event.target instanceof Element ? event.target.closest("li") : null;
    if (!over || over === held) return;
    const box = over.getBoundingClientRect();
    if (event.clientX < box.left + box.width / 2) over.before(held);
    else over.after(held);
  }

  private dragEnd(): void {
    this.tiles.querySelector(".held")?.classList.remove("held");
    const order = [...this.tiles.children];
    this.list.sort((one, other) => order.indexOf(one.tile.element) - order.indexOf(other.tile.element));
    this.changed();
  }

  private changed(): void {
    this.list.forEach((item, index) => item.tile.place(index, this.list.length));
    this.dispatchEvent(new Event("change"));
  }
}

function alone(kind: Kind, name: string): string {
  return kind === "video"
    ? `A video makes a scene by itself: ${name} was not taken.`
    : `A zip file makes a scene by itself: ${name} was not taken.`;
}

interface Actions {
  move(by: -1 | 1): void;
  remove(): void;
}

/** One photo in the tray. */
class Tile {
  readonly element: HTMLLIElement;
  private readonly number = h("span", { class: "number" });
  private readonly picture = h("div", { class: "picture" });
  private readonly sentence = h("p", { class: "fault", hidden: true });
  private readonly left: HTMLButtonElement;
  private readonly right: HTMLButtonElement;
  private readonly gone: HTMLButtonElement;
  private address = "";

  constructor(name: string, kind: Kind, actions: Actions) {
    this.left = tool("left", `Move ${name} one place earlier`, () => actions.move(-1));
    this.right = tool("right", `Move ${name} one place later`, () => actions.move(1));
    this.gone = tool("close", `Remove ${name}`, () => actions.remove());
    const title = h("p", { class: "name", title: name }, name);
    const tools = h("div", { class: "tools" }, this.left, this.right, this.gone);
    this.element = h("li", { class: `tile ${kind}` }, this.picture, this.number, title, tools, this.sentence);
    if (kind !== "photo") this.neutral(kind);
    this.element.draggable = kind === "photo";
    this.element.addEventListener("dragstart", (event) => {
      event.dataTransfer?.setData("text/plain", name);
      // The drag's own picture is taken now, before the tile fades.
      requestAnimationFrame(() => this.element.classList.add("held"));
    });
  }

  show(picture: Blob | null): void {
    if (!picture) {
      this.neutral("photo");
      return;
    }
    this.address = URL.createObjectURL(picture);
    this.picture.replaceChildren(h("img", { src: this.address, alt: "", draggable: "false" }));
  }

  place(index: number, all: number): void {
    this.number.textContent = String(index + 1);
    // `disabled` would take the focus away from who moves a photo to the end.
    this.left.ariaDisabled = String(index === 0);
    this.right.ariaDisabled = String(index === all - 1);
  }

  fault(sentence: string): void {
    this.sentence.textContent = sentence;
    this.sentence.hidden = false;
    this.element.classList.add("faulty");
  }

  focusRemove(): void {
    this.gone.focus();
  }

  drop(): void {
    if (this.address) URL.revokeObjectURL(this.address);
    this.element.remove();
  }

  /** Of what the browser cannot show. */
  private neutral(kind: Kind): void {
    this.picture.classList.add("neutral");
    this.picture.replaceChildren(icon(kind));
  }
}
