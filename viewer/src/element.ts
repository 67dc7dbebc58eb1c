/**
 * `<scenelift-viewer src="https://host/jobs/ID?token=...">`: a job's scene with everything to look at it.
 *
 * Attributes: `src`, the address of a job, or of a job's document in a file; `representation` (`gaussians`, `points`,
 * `mesh`), `background` (`auto`, `light`, `dark`, `black` or a CSS colour), `controls` (`full`, `none`), `autoload`
 * (`false`: a picture with a play button first). Events: `load` (detail: what is shown), `progress` (detail: the job's
 * `status`, `stage` and `share`, 0 to 1), `error` (detail: a Problem). Slot: `corner`. docs/embed.md tells more.
 */

import { absolute, ended, type JobDocument, Problem, readJob, unreachable, watch } from "./api";
import { About, doubtful } from "./element/about";
import { Chip } from "./element/chip";
import { Curtain } from "./element/curtain";
import { h } from "./element/dom";
import { downloads } from "./element/downloads";
import { Filmstrip } from "./element/filmstrip";
import { Panel } from "./element/panel";
import { BACKGROUNDS, Settings } from "./element/settings";
import css from "./element/style.css?inline";
import { type PanelName, type Switch, type Tool, Toolbar } from "./element/toolbar";
import { bytes, percent, REPRESENTATIONS, stage } from "./element/words";
import type { Representation, SceneView, Shown } from "./scene/view";

/** `still`: there is no 3D here, and a picture must do. */
export type State = "empty" | "idle" | "fetching" | "working" | "loading" | "ready" | "failed" | "still";

const NO_3D = "This browser cannot draw in 3D, so here is a picture. The files can be downloaded all the same.";
const NOTHING = "This job was asked for no file that can be shown in 3D. What there is can be downloaded.";
const GONE_3D = "This device has stopped drawing in 3D, so here is a picture. Reload the page to try again.";
/** Milliseconds in which a device that has taken its graphics away gives them back, if it does. */
const PATIENCE = 5_000;
/** Height in CSS pixels from which there is room for the photos below the scene. */
const ROOMY = 520;
const FOOTING = matchMedia("(pointer: coarse)").matches
  ? "Walking: one finger looks around, two fingers move."
  : "Walking: arrow keys or W A S D to move, drag to look around.";

export class SceneliftViewer extends HTMLElement {
  static readonly observedAttributes = ["src", "representation", "background", "controls"];

  private readonly internals = this.attachInternals();
  private readonly stage = h("div", { class: "stage", part: "stage" });
  private readonly curtain = new Curtain();
  private readonly toolbar = new Toolbar(
    (tool) => this.use(tool),
    (representation) => void this.show(representation),
  );
  private readonly filmstrip = new Filmstrip((view) => this.view?.standAt(view));
  private readonly settings = new Settings(
    () => this.view,
    (background) => (this.background = background),
  );
  private readonly panels: Record<PanelName, Panel> = {
    settings: new Panel("Settings", () => this.close()),
    downloads: new Panel("Downloads", () => this.close()),
    info: new Panel("About this scene", () => this.close()),
  };
  private readonly switches: Record<Switch, boolean> = {
    photos: true,
    walk: false,
    frusta: false,
    measure: false,
    fullscreen: false,
  };
  private readonly chip = new Chip((opacity) => this.view && (this.view.photoOpacity = this.opacity = opacity));
  private opacity = 0;
  private readonly voice = h("p", { class: "unseen", role: "status", "aria-live": "polite" });
  private readonly help = h(
    "p",
    { class: "unseen", id: "help" },
    "Arrow keys turn the scene or walk. H: first view. Comma and full stop: previous and next photo. M: measure. " +
      "F: full screen.",
  );
  private readonly deck = h("div", { class: "deck" }, this.filmstrip.element, this.toolbar.element);

  private canvas: HTMLCanvasElement | null = null;
  private view: SceneView | null = null;
  private running = new AbortController();
  private changing = new AbortController();
  private opened: { job: JobDocument; shown: Shown | null } | null = null;
  private about: About | null = null;
  private patience: ReturnType<typeof setTimeout> | undefined;
  /** In a page, and begun. */
  private living = false;
  private current: State = "empty";

  constructor() {
    super();
    const root = this.attachShadow({ mode: "open" });
    root.adoptedStyleSheets = [sheet];
    this.panels.settings.fill(...this.settings.content);
    const panels = Object.values(this.panels).map((panel) => panel.element);
    this.stage.append(
      this.curtain.element,
      h("div", { class: "grid" }, h("slot", { name: "corner" }), this.chip.element, ...panels, this.deck),
    );
    root.append(this.stage, this.voice, this.help);
    root.addEventListener("keydown", (event) => this.key(event as KeyboardEvent));
    root.addEventListener("pointerdown", (event) => {
      if (!event.composedPath().includes(this.toolbar.element)) this.toolbar.unfold(false);
    });
  }

  get src(): string {
    return this.getAttribute("src") ?? "";
  }

  set src(src: string) {
    this.setAttribute("src", src);
  }

  get representation(): Representation | null {
    const name = this.getAttribute("representation");
    return name !== null && name in REPRESENTATIONS ? (name as Representation) : null;
  }

  set representation(representation: Representation) {
    this.setAttribute("representation", representation);
  }

  get background(): string {
    return this.getAttribute("background") ?? "auto";
  }

  set background(background: string) {
    this.setAttribute("background", background);
  }

  get controls(): "full" | "none" {
    return this.getAttribute("controls") === "none" ? "none" : "full";
  }

  set controls(controls: "full" | "none") {
    this.setAttribute("controls", controls);
  }

  get autoload(): boolean {
    return this.getAttribute("autoload") !== "false";
  }

  set autoload(autoload: boolean) {
    this.setAttribute("autoload", String(autoload));
  }

  /** How far it is. Style sheets see it as `:state(ready)` and so on. */
  get state(): State {
    return this.current;
  }

  /** The job's document, once it has been read. */
  get job(): JobDocument | null {
    return this.opened?.job ?? null;
  }

  /** What is drawn, once it is. */
  get shown(): Shown | null {
    return this.opened?.shown ?? null;
  }

  /** What is to be seen now, as PNG. Throws InvalidStateError while there is no scene. */
  async screenshot(): Promise<Blob> {
    if (this.state !== "ready" || !this.view) throw new DOMException("There is no scene yet.", "InvalidStateError");
    return this.view.screenshot();
  }

  connectedCallback(): void {
    document.addEventListener("fullscreenchange", this.filled);
    scheme.addEventListener("change", this.coloured);
    this.dress();
    // Moved within its page, it keeps its scene.
    if (!this.living) this.start(this.autoload);
    this.living = true;
  }

  disconnectedCallback(): void {
    queueMicrotask(() => {
      if (this.isConnected) return;
      this.living = false;
      document.removeEventListener("fullscreenchange", this.filled);
      scheme.removeEventListener("change", this.coloured);
      this.expand(false);
      this.drop();
      this.put("empty");
    });
  }

  attributeChangedCallback(name: string, before: string | null, after: string | null): void {
    if (!this.living || before === after) return;
    if (name === "src") this.start(this.autoload);
    else if (name === "representation") void (this.representation && this.show(this.representation));
    else this.dress();
  }

  /** Read the job at `src`, and open its scene, or wait to be asked for that. */
  private start(open: boolean): void {
    this.drop();
    this.curtain.picture = null;
    this.opened = null;
    this.close();
    this.filmstrip.element.replaceChildren();
    if (!this.src) {
      this.put("empty");
      this.curtain.lift();
      return;
    }
    const { signal } = this.running;
    this.run(absolute(this.src, document.baseURI), open, signal).catch((error: unknown) => {
      if (!signal.aborted) this.fail(problem(error));
    });
  }

  private async run(address: string, open: boolean, signal: AbortSignal): Promise<void> {
    this.put("fetching");
    this.curtain.fetch();
    // The engine is on its way while the job's document is.
    const engine = open ? import("./scene/view") : null;
    engine?.catch(() => undefined);
    let job = await readJob(address, signal);
    if (!ended(job)) job = await this.wait(address, signal);
    if (job.status !== "succeeded") throw unfinished(job);
    const url = (name: string) => {
      const file = job.files.find((file) => file.name === name);
      return file ? absolute(file.url, address) : null;
    };
    this.opened = { job, shown: null };
    this.curtain.picture = url("preview.webp");
    this.filmstrip.fill(job, url("photos.webp"));
    this.panels.downloads.fill(...downloads(job, address));
    this.about = new About(job);
    this.panels.info.fill(...this.about.content);
    this.toolbar.note = doubtful(job);
    if (!engine) {
      this.put("idle");
      this.curtain.wait(() => this.start(true));
      return;
    }
    this.put("loading");
    this.curtain.load(0);
    this.voice.textContent = "Opening the scene.";
    await this.open(await engine.catch(offline), job, address, signal);
  }

  /** Tell how far a job is until it has ended. */
  private async wait(address: string, signal: AbortSignal): Promise<JobDocument> {
    let said = "";
    for await (const job of watch(address, signal)) {
      if (ended(job)) return job;
      this.put("working");
      this.curtain.work(job);
      this.tell(job, job.progress);
      if (said !== job.stage) this.voice.textContent = said = stage(job.stage);
    }
    throw unreachable();
  }

  private async open(
    engine: typeof import("./scene/view"),
    job: JobDocument,
    address: string,
    signal: AbortSignal,
  ): Promise<void> {
    signal.throwIfAborted();
    this.canvas = h("canvas", {
      part: "canvas",
      tabindex: 0,
      role: "application",
      "aria-roledescription": "3D scene",
      "aria-label": `Scene made from ${job.views.length} photos`,
      "aria-describedby": "help",
    });
    this.stage.prepend(this.canvas);
    try {
      this.view = new engine.SceneView(this.canvas);
    } catch (error) {
      if (error instanceof engine.NoWebGL) return this.still(NO_3D);
      throw error;
    }
    const view = this.view;
    view.addEventListener("measured", (event) => this.measured((event as CustomEvent<number | null>).detail));
    view.addEventListener("stood", (event) => this.stood((event as CustomEvent<number | null>).detail));
    view.addEventListener("drawn", (event) => this.drawn((event as CustomEvent<Shown>).detail));
    view.addEventListener("lost", () => this.lost());
    view.addEventListener("restored", () => this.restored());
    const onProgress = (share: number, bytes: number) => {
      this.curtain.load(share, bytes);
      this.tell(job, share);
    };
    this.dress();
    // In a low place the photos would cover the scene until they are asked for.
    this.flip("photos", this.switches.photos && this.stage.clientHeight >= ROOMY);
    const opening = view.open(job, address, onProgress, signal, this.representation ?? undefined);
    if (!view.representations.length) {
      opening.catch(() => undefined);
      return this.still(NOTHING);
    }
    this.toolbar.offer(view.representations, this.representation);
    const shown = await opening;
    this.settings.apply();
    view.walking = this.switches.walk ? "walk" : "orbit";
    view.frusta = this.controls === "full" && this.switches.frusta;
    view.measuring = this.switches.measure;
    view.photoOpacity = this.opacity;
    this.curtain.lift();
    this.put("ready");
    this.present(shown);
    this.dispatchEvent(new CustomEvent<Shown>("load", { detail: shown }));
  }

  /** Show the scene as something else; the last wish counts. */
  private async show(representation: Representation): Promise<void> {
    const { view, opened } = this;
    if (!view || !opened?.shown || !view.representations.includes(representation)) return;
    this.changing.abort();
    this.changing = new AbortController();
    this.chip.text = "";
    if (opened.shown.representation === representation) return;
    const signal = AbortSignal.any([this.running.signal, this.changing.signal]);
    const name = REPRESENTATIONS[representation].toLowerCase();
    const onProgress = (share: number, total: number) => {
      this.chip.text = `Opening the ${name}: ${percent(share)} of ${bytes(total)}`;
      this.tell(opened.job, share);
    };
    try {
      const shown = await view.show(representation, onProgress, signal);
      this.chip.text = "";
      this.present(shown);
    } catch (error) {
      if (signal.aborted) return;
      this.chip.text = problem(error).message;
      this.present(opened.shown);
    }
  }

  private present(shown: Shown): void {
    if (!this.view) return;
    this.toolbar.offer(this.view.representations, shown.representation);
    this.drawn(shown);
    this.voice.textContent = `The scene is open, shown as ${REPRESENTATIONS[shown.representation].toLowerCase()}.`;
  }

  private drawn(shown: Shown): void {
    if (this.opened) this.opened.shown = shown;
    if (this.about) this.about.shown = shown;
    this.settings.shown = shown;
  }

  /** The device needs its graphics elsewhere: often for a moment only. */
  private lost(): void {
    this.curtain.still("The device has stopped drawing in 3D for a moment.");
    this.patience = setTimeout(() => this.still(GONE_3D), PATIENCE);
  }

  private restored(): void {
    clearTimeout(this.patience);
    if (this.state === "ready") this.curtain.lift();
  }

  private still(why: string): void {
    this.dispose();
    this.put("still");
    this.curtain.still(why);
    this.voice.textContent = why;
  }

  private fail(problem: Problem): void {
    this.dispose();
    this.put("failed");
    this.curtain.fail(
      problem,
      problem.kind === "canceled" || problem.kind === "failed" ? null : () => this.start(true),
    );
    this.voice.textContent = [problem.message, problem.suggestion].join(" ");
    this.dispatchEvent(new CustomEvent<Problem>("error", { detail: problem }));
  }

  private tell(job: JobDocument, share: number): void {
    const detail = { status: job.status, stage: job.stage, share };
    this.dispatchEvent(new CustomEvent("progress", { detail }));
  }

  private use(tool: Tool): void {
    if (tool in this.panels) this.toggle(tool as PanelName);
    else if (tool === "home") this.view?.home();
    else if (tool === "picture") void this.save();
    else if (tool === "fullscreen") void this.fill();
    else this.flip(tool as Switch);
  }

  private flip(name: Switch, on = !this.switches[name]): void {
    this.switches[name] = on;
    this.toolbar.mark(name, on);
    if (name === "photos") this.filmstrip.element.hidden = !on;
    if (name === "walk") this.chip.hint(on ? FOOTING : "");
    if (name === "measure") this.measured(null);
    if (!this.view) return;
    if (name === "walk") this.view.walking = on ? "walk" : "orbit";
    if (name === "frusta") this.view.frusta = on;
    if (name === "measure") this.view.measuring = on;
  }

  private toggle(name: PanelName): void {
    const open = !this.panels[name].open;
    this.close();
    this.panels[name].open = open;
    this.toolbar.mark(name, open);
  }

  /** Close what is open; focus goes back to the button that opened it. Returns whether something was open. */
  private close(): boolean {
    for (const [name, panel] of Object.entries(this.panels) as [PanelName, Panel][]) {
      if (!panel.open) continue;
      const inside = panel.element.matches(":focus-within");
      panel.open = false;
      this.toolbar.mark(name, false);
      if (inside) this.toolbar.focus(name);
      return true;
    }
    return false;
  }

  private measured(units: number | null): void {
    if (this.switches.measure) this.chip.measured(units);
    else this.chip.text = "";
    this.voice.textContent = this.chip.text;
  }

  private stood(view: number | null): void {
    this.filmstrip.mark(view);
    const name = view === null ? "" : (this.job?.views[view]?.name ?? "");
    this.voice.textContent = name && `Seen from where ${name} was taken.`;
    if (this.switches.measure) return;
    if (name) this.chip.stood(name);
    else this.chip.text = "";
  }

  private async save(): Promise<void> {
    const url = URL.createObjectURL(await this.screenshot());
    h("a", { href: url, download: `scenelift-${this.job?.id.slice(0, 8) ?? "scene"}.png` }).click();
    // The browser has to have taken it by then.
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
    this.voice.textContent = "The picture is saved.";
  }

  private async fill(): Promise<void> {
    if (document.fullscreenElement === this) return document.exitFullscreen();
    if (this.internals.states.has("expanded")) return this.expand(false);
    // Phones of Apple give the whole screen to videos alone, and a frame may not be allowed to.
    await this.requestFullscreen?.().catch(() => undefined);
    if (document.fullscreenElement !== this) this.expand(true);
  }

  private expand(on: boolean): void {
    this.internals.states[on ? "add" : "delete"]("expanded");
    this.filled();
  }

  private readonly filled = () => {
    const on = document.fullscreenElement === this || this.internals.states.has("expanded");
    this.switches.fullscreen = on;
    this.toolbar.mark("fullscreen", on);
  };

  private readonly coloured = () => this.dress();

  /** Follow the attributes, and the page's colours. */
  private dress(): void {
    this.deck.hidden = this.controls === "none";
    if (this.controls === "none") this.close();
    this.stage.style.backgroundColor = BACKGROUNDS[this.background] ?? this.background;
    this.settings.background = this.background;
    // The colour as it comes out: an own one may be no colour, and the automatic one depends on the page.
    if (this.view) this.view.background = getComputedStyle(this.stage).backgroundColor;
  }

  private key(event: KeyboardEvent): void {
    if (event.key === "Escape") {
      if (this.toolbar.unfolded) this.toolbar.unfold(false);
      else if (!this.close() && this.internals.states.has("expanded")) this.expand(false);
      else return;
      event.stopPropagation();
      return;
    }
    if (event.target !== this.canvas || event.ctrlKey || event.metaKey || event.altKey) return;
    const tool = KEYS[event.key.toLowerCase()];
    if (tool && this.controls === "full") this.use(tool);
    else if (event.key === ",") this.filmstrip.step(-1);
    else if (event.key === ".") this.filmstrip.step(1);
    else return;
    event.preventDefault();
  }

  private put(state: State): void {
    this.internals.states.delete(this.current);
    this.internals.states.add(state);
    this.current = state;
    this.toolbar.scene = state === "ready" ? "drawn" : state === "still" ? "none" : "awaited";
    this.toolbar.element.hidden = !["loading", "ready", "still"].includes(state);
    this.filmstrip.element.hidden = state !== "ready" || !this.switches.photos;
    for (const name of ["photos", "walk", "frusta", "measure"] as const) this.toolbar.mark(name, this.switches[name]);
  }

  /** Stop whatever runs, and give back what was taken. */
  private drop(): void {
    this.running.abort();
    this.running = new AbortController();
    this.dispose();
  }

  /** Browsers allow about sixteen WebGL canvases: those that are not seen have to go. */
  private dispose(): void {
    clearTimeout(this.patience);
    this.view?.dispose();
    this.view = null;
    this.canvas?.remove();
    this.canvas = null;
    this.chip.text = "";
  }
}

const sheet = new CSSStyleSheet();
sheet.replaceSync(css);

/** Acting while the scene itself has the keyboard. */
const KEYS: Record<string, Tool> = { h: "home", g: "walk", c: "frusta", p: "photos", m: "measure", f: "fullscreen" };

const scheme = matchMedia("(prefers-color-scheme: dark)");

function unfinished(job: JobDocument): Problem {
  if (job.error) return new Problem(0, "failed", job.error.detail, job.error.suggestion);
  return new Problem(0, "canceled", "This scene was cancelled.", "Send the photos again to make it.");
}

/** What to tell of an error to those who only came to look. */
function problem(error: unknown): Problem {
  if (error instanceof Problem) {
    const { status, kind } = error;
    if (status === 401) return new Problem(status, kind, error.message, "Ask for a new link to this scene.");
    if (status === 404)
      return new Problem(status, kind, "This scene is not here.", "Scenes are removed some time after they are made.");
    return error;
  }
  return new Problem(0, "unreadable", "The scene cannot be shown.", "Try again, or reload the page.");
}

function offline(): never {
  throw unreachable();
}

declare global {
  interface HTMLElementTagNameMap {
    "scenelift-viewer": SceneliftViewer;
  }
}

// A page that shows scenes of two services brings it twice.
if (!customElements.get("scenelift-viewer")) customElements.define("scenelift-viewer", SceneliftViewer);
