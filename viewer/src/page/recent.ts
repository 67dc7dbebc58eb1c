/** Scenes that were made here, remembered by this browser. */

import { type JobDocument, Problem } from "../api";
import { confirmed } from "./dialog";
import { announce, h, tool } from "./dom";
import type { Access } from "./key";
import { count, lately } from "./words";

const KEPT = "scenelift.recent";
const MOST = 12;

interface Remembered {
  readonly id: string;
  readonly at: number;
  readonly photos: number;
  readonly status: JobDocument["status"] | "gone";
  /** A data address, or empty. */
  readonly picture: string;
}

const STATUS: Record<Remembered["status"], string> = {
  queued: "waiting",
  running: "in work",
  succeeded: "",
  failed: "did not work",
  canceled: "cancelled",
  gone: "not kept any more",
};

/** Events: `change`. */
export class Recent extends EventTarget {
  private readonly fault = h("p", { class: "fault", role: "alert" });

  constructor(
    private readonly access: Access,
    private readonly list: HTMLUListElement,
  ) {
    super();
    list.after(this.fault);
    this.draw();
  }

  get empty(): boolean {
    return !this.read().length;
  }

  /** Remember how the job stands; a picture of it, where there is one, or that which it had. */
  keep(job: JobDocument, picture = ""): void {
    const before = this.read().find((one) => one.id === job.id);
    const now: Remembered = {
      id: job.id,
      at: Date.parse(job.created_at),
      photos: job.views.length,
      status: job.status,
      picture: picture || before?.picture || "",
    };
    this.write([now, ...this.read().filter((one) => one.id !== job.id)]);
  }

  has(id: string): boolean {
    return this.read().some((one) => one.id === id);
  }

  pictured(id: string): boolean {
    return this.read().some((one) => one.id === id && one.picture);
  }

  /** The service does not have the job any more. */
  gone(id: string): void {
    this.write(this.read().map((one) => (one.id === id ? { ...one, status: "gone" } : one)));
  }

  forget(id: string): void {
    this.write(this.read().filter((one) => one.id !== id));
  }

  /** Ask the service how those stand that may have changed. */
  async refresh(): Promise<void> {
    for (const { id, status } of this.read()) {
      if (status === "gone") continue;
      try {
        const job = await this.access.service.job(id);
        if (job.status !== status && this.has(id)) this.keep(job);
      } catch (error) {
        // Without a key, or without the service, nothing is known of any of them.
        if (!(error instanceof Problem) || error.status !== 404) return;
        this.gone(id);
      }
    }
  }

  /** Ask once, then delete the job with all its files. Whether that was done. Raises Problem. */
  async delete(id: string): Promise<boolean> {
    const text = "Its photos and files are removed from the service, and links to it end. This cannot be undone.";
    if (!(await confirmed("Delete this scene?", text, "Delete it"))) return false;
    await this.access.call((service) => service.remove(id)).catch((error: unknown) => {
      if (!(error instanceof Problem) || error.status !== 404) throw error;
    });
    this.forget(id);
    announce("The scene is deleted.");
    return true;
  }

  private draw(): void {
    const entries = this.read().sort((one, other) => other.at - one.at);
    this.list.replaceChildren(...entries.map((one) => this.entry(one)));
  }

  private entry(one: Remembered): HTMLLIElement {
    const photos = count(one.photos, "photo");
    const time = lately(one.at);
    const title = h("strong", {}, time);
    const about = [photos, STATUS[one.status]].filter(Boolean).join(" · ");
    const picture = one.picture ? h("img", { src: one.picture, alt: "" }) : h("span", { class: "blank" });
    const content = [picture, h("span", {}, title, h("span", { class: "quiet" }, about))];
    const name = `the scene of ${time}`;
    if (one.status === "gone") {
      const forget = tool("close", `Forget ${name}`, () => this.forget(one.id));
      return h("li", { class: "gone" }, h("span", { class: "entry" }, ...content), forget);
    }
    return h(
      "li",
      {},
      h("a", { href: `?job=${one.id}`, class: "entry" }, ...content),
      tool("close", `Forget ${name}: it stays on the service`, () => this.forget(one.id)),
      tool("trash", `Delete ${name}`, () => void this.remove(one.id)),
    );
  }

  private async remove(id: string): Promise<void> {
    this.fault.textContent = "";
    try {
      if (await this.delete(id)) this.list.querySelector("a")?.focus();
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      this.fault.textContent = `${error.message} ${error.suggestion}`;
    }
  }

  private read(): Remembered[] {
    try {
      const kept: unknown = JSON.parse(localStorage.getItem(KEPT) ?? "[]");
      return Array.isArray(kept) ? kept.filter((one) => typeof one?.id === "string") : [];
    } catch {
      return [];
    }
  }

  private write(entries: Remembered[]): void {
    const newest = entries.sort((one, other) => other.at - one.at).slice(0, MOST);
    try {
      localStorage.setItem(KEPT, JSON.stringify(newest));
    } catch {
      // Storage is full, or closed to us: scenes are reached by their addresses all the same.
    }
    this.draw();
    this.dispatchEvent(new Event("change"));
  }
}
