/** The scene in a canvas: what is drawn, and from where. */

import { Ray, Vector2, Vector3 } from "three";

import type { JobDocument } from "../api";
import { Cloud } from "./cloud";
import { Controls, type Walking } from "./controls";
import { Files, type OnProgress, type Representation, type SplatFile } from "./files";
import type { Layer } from "./layer";
import { Measure } from "./measure";
import { Photos } from "./photos";
import { NoWebGL, Stage } from "./stage";
import { type CamerasFile, firstLook, type Look, photoPose, worldOf, type World } from "./world";

export { NoWebGL, type OnProgress, type Representation, type Walking };

export interface Shown {
  representation: Representation;
  /** Points, Gaussians or triangles of the file, and how many of them are drawn. */
  total: number;
  drawn: number;
}

/** Points that are read at most, of evenly all: about 20 bytes each on the graphics card, and as many beside it. */
const MOST_POINTS = { phone: 700_000, desktop: 4_000_000 };
/** Points by which the scene is framed. */
const SAMPLE = 10_000;
/** Radius in CSS pixels in which a press finds a point. */
const FINGER = 8;

/**
 * Draws a job's scene. World: OpenCV axes turned so that y is up, the scene's floor level.
 *
 * Events: `measured` (detail: distance in scene units, or null), `stood` (detail: index of the view stood at, or null),
 * `drawn` (detail: Shown; less is drawn while moving on a slow machine, and all of it again at rest), `lost` and
 * `restored` (the browser took the graphics away, and gave them back).
 */
export class SceneView extends EventTarget {
  private readonly stage: Stage;
  private readonly controls: Controls;
  private readonly measure = new Measure();
  private readonly layers = new Map<Representation, Layer>();
  private readonly listening = new AbortController();

  /** Aborted when another job is opened, or none any more. */
  private opened = new AbortController();
  private isRanked = false;
  private files: Files | null = null;
  private world: World = worldOf(null);
  private look: Look | null = null;
  private current: Representation | null = null;
  private photos: Photos | null = null;
  private stood: number | null = null;
  private untouched = true;
  private isMeasuring = false;
  private share = 0;
  private size = 1;
  private overlay = 0;
  private photosShown = true;
  private thinned = false;

  /** Throws NoWebGL. */
  constructor(readonly canvas: HTMLCanvasElement) {
    super();
    this.stage = new Stage(canvas);
    const { scene, camera } = this.stage;
    scene.add(this.measure.object);
    this.controls = new Controls(camera, canvas, {
      changed: () => this.stage.request(),
      moved: () => this.moved(),
      tapped: (at) => this.tapped(at),
      doubleTapped: (at) => this.turnAbout(at),
      hovered: (at) => this.hovered(at),
      surface: (at) => this.surface(at),
    });
    this.stage.onFrame = (seconds) => this.prepare(seconds);
    this.stage.onShare = (share) => this.thin(share);
    this.stage.onResize = () => this.resized();
    const { signal } = this.listening;
    canvas.addEventListener("keydown", (event) => event.key === "Escape" && this.clearMeasure(), { signal });
    canvas.addEventListener("webglcontextlost", () => this.tell("lost"), { signal });
    canvas.addEventListener("webglcontextrestored", () => this.restored(), { signal });
  }

  /** Read cameras and photos, then show the wanted representation, or the best that the job has. */
  async open(
    job: JobDocument,
    address: string,
    onProgress: OnProgress,
    signal: AbortSignal,
    wanted?: Representation,
  ): Promise<Shown> {
    this.close();
    const files = (this.files = new Files(job, address));
    const best = wanted && files.of(wanted) ? wanted : files.best(this.stage.graphics);
    if (!best) throw new Error("This job has no file that can be shown.");
    const cameras = files.named("cameras.json");
    const needed = [files.of(best)!, ...(cameras ? [cameras] : [])];
    const [bytes, text] = await files.fetch(needed, onProgress, signal);
    this.world = worldOf(text ? (JSON.parse(new TextDecoder().decode(text)) as CamerasFile) : null);
    const layer = this.keep(best, await this.read(best, bytes!), signal);

    this.look = firstLook(this.world, layer.sample(SAMPLE), this.stage.aspect);
    this.controls.scale = this.look.scale;
    this.controls.place(this.look.pose, this.look.centre);
    this.photos = new Photos(this.world, this.look.scale);
    this.photos.shown = this.photosShown;
    this.stage.scene.add(this.photos.object);
    const shown = await this.put(best, layer, signal);
    void this.readPhotos(this.photos, signal);
    return shown;
  }

  /** Those that the job's files allow. */
  get representations(): Representation[] {
    return this.files?.representations ?? [];
  }

  async show(representation: Representation, onProgress: OnProgress, signal: AbortSignal): Promise<Shown> {
    return this.put(representation, await this.load(representation, onProgress, signal), signal);
  }

  /** Leave out the least sure share (0 to 1) of what is drawn. Acts at once; a mesh stays whole. */
  set leastSure(share: number) {
    this.share = share;
    this.layer?.leaveOut(share);
    if (share > 0) void this.rankGaussians();
    this.tellDrawn();
    this.stage.request();
  }

  /** Factor on the size of points. */
  set pointSize(factor: number) {
    this.size = factor;
    const points = this.layers.get("points");
    if (points instanceof Cloud) points.size = factor;
    this.stage.request();
  }

  /** A CSS colour. */
  set background(colour: string) {
    this.stage.background = colour;
  }

  set frusta(visible: boolean) {
    this.photosShown = visible;
    if (this.photos) this.photos.shown = visible;
    this.stage.request();
  }

  set walking(how: Walking) {
    this.controls.walking = how;
  }

  /** While on, two clicks measure a distance. */
  set measuring(on: boolean) {
    this.isMeasuring = on;
    this.canvas.style.cursor = on ? "crosshair" : "";
    if (!on) this.clearMeasure();
  }

  /** How far the photo that is stood at covers the scene, 0 to 1. */
  set photoOpacity(opacity: number) {
    this.overlay = opacity;
    if (this.stood !== null) this.photos?.stand(this.stood, opacity);
    this.stage.request();
  }

  /** Fly to where a photo was taken; nothing where it could not be placed. */
  standAt(view: number): void {
    const photo = this.world.photos.find((one) => one.view === view);
    if (!photo || !this.look) return;
    this.untouched = false;
    this.stand(view);
    const pose = photoPose(photo, this.stage.aspect);
    const ahead = new Vector3(0, 0, -1).applyQuaternion(pose.quaternion);
    const hit = this.layer?.pick(new Ray(pose.position, ahead), FINGER * this.stage.pixel);
    const distance = hit ? hit.distanceTo(pose.position) : this.look.scale;
    this.controls.fly(pose, pose.position.clone().addScaledVector(ahead, distance));
  }

  /** Fly back to the first look at the scene. */
  home(): void {
    if (!this.look) return;
    this.stand(null);
    this.controls.fly(this.look.pose, this.look.centre);
    this.untouched = true;
  }

  /** A PNG of the canvas as it is. */
  screenshot(): Promise<Blob> {
    this.stage.render();
    return new Promise((resolve, reject) =>
      this.canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("The picture is empty.")))),
    );
  }

  /** Free everything, the canvas' graphics too: it cannot be drawn to again. */
  dispose(): void {
    this.close();
    this.listening.abort();
    this.controls.dispose();
    this.stage.dispose();
  }

  private get layer(): Layer | undefined {
    return this.current ? this.layers.get(this.current) : undefined;
  }

  private close(): void {
    this.opened.abort();
    this.opened = new AbortController();
    this.isRanked = false;
    this.clearMeasure();
    for (const layer of this.layers.values()) {
      layer.object.removeFromParent();
      layer.dispose();
    }
    this.layers.clear();
    this.photos?.object.removeFromParent();
    this.photos?.dispose();
    this.photos = this.look = this.current = this.stood = null;
    this.untouched = true;
  }

  private async load(representation: Representation, onProgress: OnProgress, signal: AbortSignal): Promise<Layer> {
    const there = this.layers.get(representation);
    if (there) return there;
    const file = this.files?.of(representation);
    if (!file) throw new Error(`This job has no ${representation}.`);
    const [bytes] = await this.files!.fetch([file], onProgress, signal);
    return this.keep(representation, await this.read(representation, bytes!), signal);
  }

  /** Keep what has been read, unless it has been asked for twice, or is not wanted any more. */
  private keep(representation: Representation, layer: Layer, signal: AbortSignal): Layer {
    const there = this.layers.get(representation);
    if (there || signal.aborted) layer.dispose();
    signal.throwIfAborted();
    this.layers.set(representation, there ?? layer);
    return there ?? layer;
  }

  private async read(representation: Representation, bytes: ArrayBuffer): Promise<Layer> {
    const { fromFiles } = this.world;
    if (representation === "mesh") return (await import("./mesh")).TexturedMesh.read(bytes);
    if (representation === "points") {
      const toFiles = fromFiles.clone().invert();
      const eyes = new Map(
        this.world.photos.map(({ view, pose, pixel }) => {
          const centre = new Vector3().setFromMatrixPosition(pose).applyMatrix4(toFiles);
          return [view, { centre, pixel }];
        }),
      );
      const isPhone = matchMedia("(pointer: coarse)").matches && Math.min(screen.width, screen.height) < 800;
      return new Cloud(bytes, fromFiles, eyes, isPhone ? MOST_POINTS.phone : MOST_POINTS.desktop);
    }
    const { Splats } = await import("./splats");
    const file = this.files!.of(representation)!.name as SplatFile;
    return Splats.read(bytes, file, fromFiles, this.stage.renderer, () => this.stage.request());
  }

  /** Draw this layer, and no other once there is something of it to see. */
  private async put(representation: Representation, layer: Layer, signal: AbortSignal): Promise<Shown> {
    layer.thin(1);
    layer.leaveOut(this.share);
    if (layer instanceof Cloud) layer.size = this.size;
    layer.object.visible = true;
    this.stage.scene.add(layer.object);
    try {
      do {
        await this.stage.drawn();
        signal.throwIfAborted();
      } while (layer.ready === false);
      this.current = representation;
    } finally {
      for (const [one, { object }] of this.layers) object.visible = one === this.current;
    }
    if (this.share > 0) void this.rankGaussians();
    this.stage.request();
    return { representation, total: layer.total, drawn: layer.drawn };
  }

  /** The photos come last, and the scene does without them where there are none. */
  private async readPhotos(photos: Photos, signal: AbortSignal): Promise<void> {
    const file = this.files?.named("photos.webp");
    if (!file) return;
    try {
      const bytes = await this.files!.fetch([file], () => undefined, signal);
      const image = await createImageBitmap(new Blob(bytes, { type: file.content_type }));
      if (this.photos !== photos) return image.close();
      photos.pictures = image;
      if (this.stood !== null) photos.stand(this.stood, this.overlay);
      this.stage.request();
    } catch (error) {
      if (!signal.aborted) console.warn("The photos are not shown in the scene:", error);
    }
  }

  /** Gaussians are as sure as their points, which are read once that matters; by their opacity where they cannot be. */
  private async rankGaussians(): Promise<void> {
    const { opened } = this;
    if (this.current !== "gaussians" || this.isRanked || !this.files?.of("points")) return;
    this.isRanked = true;
    try {
      const points = await this.load("points", () => undefined, opened.signal);
      const { Splats } = await import("./splats");
      const gaussians = this.layers.get("gaussians");
      if (!(points instanceof Cloud && gaussians instanceof Splats)) return;
      gaussians.rankBy(points.sureness);
      this.stage.request();
    } catch (error) {
      if (!opened.signal.aborted) console.warn("The Gaussians are left out by their opacity:", error);
    }
  }

  private prepare(seconds: number): boolean {
    const moves = this.controls.update(seconds);
    const { camera } = this.stage;
    if (this.look) {
      // As near as one can come, as far as there is something.
      camera.far = camera.position.distanceTo(this.look.centre) + 4 * this.look.radius + this.look.scale;
      camera.near = Math.max(0.01 * this.look.scale, camera.far / 20_000);
      camera.updateProjectionMatrix();
    }
    this.measure.fit(this.stage.pixel);
    this.photos?.clear(camera.position);
    return moves;
  }

  private thin(share: number): void {
    const before = this.layer?.drawn;
    this.layer?.thin(share);
    // That less is drawn is news, and that all is again; how much less just now is not.
    if (this.thinned !== share < 1 && this.layer?.drawn !== before) this.tellDrawn();
    this.thinned = share < 1;
  }

  private resized(): void {
    if (this.look && this.untouched) {
      const sample = this.layer?.sample(SAMPLE);
      if (sample) this.look = firstLook(this.world, sample, this.stage.aspect);
      this.controls.place(this.look.pose, this.look.centre);
    } else if (this.stood !== null) {
      const photo = this.world.photos.find((one) => one.view === this.stood)!;
      this.controls.place(photoPose(photo, this.stage.aspect), this.controls.pivot.clone());
    }
  }

  private moved(): void {
    this.untouched = false;
    this.stand(null);
  }

  private stand(view: number | null): void {
    if (this.stood === view) return;
    this.stood = view;
    this.photos?.stand(view, this.overlay);
    this.stage.request();
    this.tell("stood", view);
  }

  private rayAt(at: Vector2): Ray {
    const { camera, canvas } = this.stage;
    const x = (2 * at.x) / canvas.clientWidth - 1;
    const y = 1 - (2 * at.y) / canvas.clientHeight;
    const through = new Vector3(x, y, 0.5).unproject(camera);
    return new Ray(camera.position.clone(), through.sub(camera.position).normalize());
  }

  private surface(at: Vector2): Vector3 | null {
    return this.layer?.pick(this.rayAt(at), FINGER * this.stage.pixel) ?? null;
  }

  private tapped(at: Vector2): void {
    if (this.isMeasuring) {
      const place = this.surface(at);
      if (!place) return;
      const distance = this.measure.add(place);
      this.tell("measured", distance);
      this.stage.request();
      return;
    }
    const view = this.photos?.pick(this.rayAt(at)) ?? null;
    if (view !== null) this.standAt(view);
  }

  /** Bring what was pressed to the middle, and turn about it from then on. */
  private turnAbout(at: Vector2): void {
    const place = this.isMeasuring ? null : this.surface(at);
    if (!place) return;
    this.moved();
    this.controls.face(place);
  }

  private hovered(at: Vector2 | null): void {
    const view = at && !this.isMeasuring ? (this.photos?.pick(this.rayAt(at)) ?? null) : null;
    if (!this.photos || this.photos.highlit === view) return;
    this.photos.highlit = view;
    this.canvas.style.cursor = view === null ? (this.isMeasuring ? "crosshair" : "") : "pointer";
    this.stage.request();
  }

  private clearMeasure(): void {
    if (this.measure.isEmpty) return;
    this.measure.clear();
    this.tell("measured", null);
    this.stage.request();
  }

  private restored(): void {
    this.layer?.leaveOut(this.share);
    this.stage.renew();
    this.tell("restored");
  }

  private tellDrawn(): void {
    const { layer, current } = this;
    if (layer) this.tell("drawn", { representation: current, total: layer.total, drawn: layer.drawn });
  }

  private tell(type: string, detail: unknown = null): void {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
